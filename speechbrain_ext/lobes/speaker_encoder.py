"""Encoder and head in one module: waveform → embedding."""

from torch import nn


class SpeakerEncoder(nn.Module):
    """e = head(encoder(waveform)).

    One module, so that one optimiser, one checkpoint and one DistributedDataParallel
    wrapper hold it all.

    Arguments
    ---------
    encoder : torch.nn.Module
        (wavs [B, T], wav_lens [B]) → (L+1 states [B, T', C], lens [B]).
    head : torch.nn.Module
        (states, lens) → [B, 1, E].
    """

    def __init__(self, encoder, head):
        super().__init__()
        self.encoder = encoder
        self.head = head

    @property
    def embedding_size(self):
        """Width E of the embedding."""
        return self.head.arguments["embedding_size"]

    def forward(self, wavs, wav_lens=None):
        """wavs [B, T] in ±1 at 16 kHz, wav_lens [B] relative → [B, 1, E]."""
        return self.head(*self.encoder(wavs, wav_lens))
