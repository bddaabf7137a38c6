"""Encoder and head in one module: waveform → embedding."""

import copy

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
        (states, lens) → [B, 1, E]. Layers of the encoder behind the last state that it
        reads are left out (:meth:`~speechbrain_ext.lobes.encoder.Encoder.truncate`).

    Raises
    ------
    InputError
        An encoder that cannot leave them out.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.head = head
        if (reads := getattr(head, "states_read", None)) is not None:
            _, last, n_states = reads
            if getattr(encoder, "n_states", 0) == n_states > last + 1:
                encoder.truncate(last + 1)

    @property
    def embedding_size(self):
        """Width E of the embedding."""
        return self.head.embedding_size

    def forward(self, wavs, wav_lens=None):
        """wavs [B, T] in ±1 at 16 kHz, wav_lens [B] relative → [B, 1, E]."""
        return self.head(*self.encoder(wavs, wav_lens))

    def prunable_groups(self):
        """What may be removed from either → list of PrunableGroup, for ``pruning``."""
        return [
            group.within(name)
            for name, part in self.named_children()
            if hasattr(part, "prunable_groups")
            for group in part.prunable_groups()
        ]

    def resized(self, widths):
        """A new encoder and head of other widths: group name → units."""
        parts = {}
        for name, part in self.named_children():
            prefix = f"{name}."
            own = {
                k[len(prefix) :]: n for k, n in widths.items() if k.startswith(prefix)
            }
            parts[name] = part.resized(own) if own else copy.deepcopy(part)
        return type(self)(**parts)
