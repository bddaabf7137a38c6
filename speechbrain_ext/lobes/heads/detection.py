"""Bona fide or spoof: two classes from the embedding of any head.

    z = W ReLU(BatchNorm(e)) + b                        logits (spoof, bona fide)
    llr = (z_b − ln π_b) − (z_s − ln π_s)

e is the embedding of the inner head, as wedefense has it for ASVspoof 5 (arXiv
2508.16232). π are the shares of the classes in training, as its loss weighted them:
softmax(z) is their posterior there, so llr is the log-likelihood ratio, whatever they
were (Brümmer & du Preez 2006, equation 1).
"""

import math

import torch
from torch import nn

from speechbrain_ext.lobes.encoder import Head, shared_copy
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import full_precision

SPOOF, BONAFIDE = "spoof", "bonafide"
CLASSES = (SPOOF, BONAFIDE)  # the order of the logits


class Detection(Head):
    """A head with two classes behind it.

    Arguments
    ---------
    head : Head
        Hidden states → embedding [B, 1, E].
    n_classes : int
        2: spoof, bona fide.

    Raises
    ------
    InputError
        No head, or one that detects already; another number of classes.

    Example
    -------
    >>> from speechbrain_ext.lobes.heads import MHFA
    >>> head = Detection(MHFA(8, n_states=2, embedding_size=6, heads=2))
    >>> head.eval()([torch.zeros(3, 10, 8)] * 2).shape
    torch.Size([3, 1, 2])
    """

    used_by = "SpoofingDetector"

    def __init__(self, head: nn.Module, n_classes: int = 2):
        super().__init__()
        if not isinstance(head, Head) or isinstance(head, Detection):
            raise InputError(
                f"Detection: head is a {type(head).__name__}, expected a head that "
                "makes embeddings, such as MHFA"
            )
        if n_classes != len(CLASSES):
            raise InputError(
                f"Detection: n_classes={n_classes}, expected 2: {', '.join(CLASSES)}"
            )
        self.head = head
        self.norm = nn.BatchNorm1d(head.embedding_size)
        self.output = nn.Linear(head.embedding_size, n_classes)
        even = torch.full((n_classes,), -math.log(n_classes))
        self.register_buffer("log_prior", even)  # ln π, set by the training

    @property
    def embedding_size(self):
        """Width of the output: the number of classes."""
        return len(self.log_prior)

    @property
    def min_frames(self):
        """Frames that the inner head needs."""
        return self.head.min_frames

    @property
    def states_read(self):
        """States that the inner head reads: (first, last, n_states)."""
        return self.head.states_read

    def chosen(self, states):
        """The states that the inner head reads, of all of the encoder's."""
        return self.head.chosen(states)

    def forward(self, states, lens=None):
        """L+1 states [B, T, C], lens [B] relative → logits [B, 1, 2]."""
        embedding = self.head(states, lens).squeeze(1)
        with full_precision(embedding):
            return self.output(self.norm(embedding.float()).relu()).unsqueeze(1)

    def log_likelihood_ratio(self, logits):
        """Logits [..., 2], array or tensor → llr [...], natural log."""
        prior = self.log_prior.double().tolist()
        spoof, bonafide = (logits[..., c] - prior[c] for c in range(len(CLASSES)))
        return bonafide - spoof

    def prunable_groups(self):
        """Those of the inner head → list of PrunableGroup, for ``pruning``."""
        return [group.within("head") for group in self.head.prunable_groups()]

    def resized(self, widths):
        """A new head of other inner widths: group name → units."""
        inner = {name.removeprefix("head."): units for name, units in widths.items()}
        return type(self)(self.head.resized(inner), self.embedding_size)

    def graph_form(self):
        """The same with the inner head's graph form, sharing the weights."""
        form = shared_copy(self)
        form.head = self.head.graph_form()
        return form
