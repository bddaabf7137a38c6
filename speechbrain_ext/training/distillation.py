"""The term that makes a student of a teacher: Distillation.

    loss = weight · mean over pairs (s, t) of distance(P_s(state s), state t)

Of pruning all states with their own and L1 − cosine (arXiv 2510.04213); of SV-Mixer the
last with the last and their mean square (arXiv 2509.14136); of DistilHuBERT prediction
heads on one state for some of the teacher's (arXiv 2110.01900).
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import nn

from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.losses import aligned, distillation_loss
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.pruning.plots import write_structure
from speechbrain_ext.training.terms import Term
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import round_for_autocast

logger = logging.getLogger(__name__)


class Distillation(Term):
    """How far the student's hidden states are from a frozen teacher's.

    Arguments
    ---------
    teacher : SpeakerEncoder, Encoder or str, optional
        No ``train()`` reaches it; under autocast the weights of its products are
        rounded for good. A name is a saved model's folder. None: this term adds
        nothing, for a student that learns alone.
    layers : list of [int, int], optional
        Which state of the student is compared with which of the teacher, from the end
        where negative; None: each with its own.
    project : bool or str
        Maps from the student's width to the teacher's, one for each pair: True linear
        ones, "mlp" Linear → GELU → Linear, as DistilHuBERT's prediction heads.
    distance : callable
        (student's states, teacher's states, lens) → tuple whose first is the loss and
        whose other fields, one value per state, are logged by their names. By default
        mean L1 − mean cosine (arXiv 2510.04213).
    weight : float
        Factor of the loss.

    A teacher of another frame rate is brought to the student's:
    :func:`~speechbrain_ext.losses.aligned`.
    """

    def __init__(
        self,
        teacher: nn.Module | str | None = None,
        layers: list[list[int]] | None = None,
        project: bool | Literal["mlp"] = False,
        distance: Callable = distillation_loss,
        weight: NonNegativeFloat = 1.0,
    ):
        if isinstance(teacher, str | Path):
            teacher = load_pretrained(teacher)
        is_model = isinstance(teacher, SpeakerEncoder)
        self.teacher = teacher.encoder if is_model else teacher
        self.needs_states = teacher is not None
        self.layers = layers
        self.project = project
        self.distance = distance
        self.weight = weight
        self.projections = self.parts = None

    def setup(self, speaker_encoder, data):
        """Check the crops and the layer map; make the projections."""
        if self.teacher is None:
            return
        student, teacher = speaker_encoder.encoder, self.teacher
        data.check_crops(teacher)
        n = student.n_states, teacher.n_states
        if self.layers is None and n[0] != n[1]:
            raise InputError(
                f"distillation: student of {n[0]} states, teacher of {n[1]}, expected "
                "equal numbers or layers: [[student's, teacher's], …]"
            )
        if self.layers is not None:
            if not self.layers:
                raise InputError(
                    "distillation: layers [], expected a pair [student's, teacher's] "
                    "or more"
                )
            for pair in self.layers:
                if len(pair) != 2 or not all(-m <= i < m for i, m in zip(pair, n)):
                    raise InputError(
                        f"distillation: layers {pair}, expected [student's, teacher's] "
                        f"of {n[0]} and {n[1]} states"
                    )
            # a negative number counts from the end
            self.reads_last = any(i % n[0] == n[0] - 1 for i, _ in self.layers)
        sizes = student.hidden_size, teacher.hidden_size
        if self.project:
            n_pairs = len(self.layers) if self.layers else student.n_states
            self.projections = Projections(*sizes, n_pairs, self.project == "mlp")
        elif sizes[0] != sizes[1]:
            raise InputError(
                f"distillation: student of width {sizes[0]}, teacher of {sizes[1]}, "
                "expected equal ones or project: True"
            )
        logger.info(
            "encoders: teacher %d parameters, student %d, gates included",
            *(count_parameters(encoder).total for encoder in (teacher, student)),
        )

    def modules(self):
        """The projections, if there are any."""
        return {} if self.projections is None else {"projections": self.projections}

    def to(self, device):
        """Freeze the teacher where it computes."""
        if self.teacher is not None:
            self.teacher = self.teacher.to(device).requires_grad_(False).eval()

    def before(self, wavs, x, lens, encoder):
        """The teacher's states; from the student's features where they are its own."""
        if self.teacher is None:
            return
        round_for_autocast(self.teacher, wavs.device.type)
        with torch.no_grad():
            if not self.teacher.same_front_end(encoder):
                x, _ = self.teacher.front_end(wavs, None)
            self.targets = self.teacher.encode(x, lens)

    def loss(self, outputs, modules, step):
        """Compare, and let go of the teacher's states."""
        if self.teacher is None:
            return 0.0
        student, teacher, self.targets = outputs.states, self.targets, None
        if self.layers is not None:
            student = [student[number] for number, _ in self.layers]
            teacher = [teacher[number] for _, number in self.layers]
        if self.projections is not None:
            student = modules["projections"](student)
        teacher = [aligned(t, student[0].shape[1]) for t in teacher]
        self.parts = self.distance(student, teacher, outputs.lens)
        return self.weight * self.parts[0]

    def columns(self):
        """The parts of the distance, averaged over the states."""
        if self.parts is None:
            return {}
        names = self.parts._fields[1:]
        return {name: getattr(self.parts, name).mean() for name in names}

    def check_finite(self, check):
        """The first hidden state that is to blame."""
        if self.parts is None:
            return
        for name, values in zip(self.parts._fields[1:], self.parts[1:]):
            for number, value in enumerate(values):
                check(f"distillation: {name} of hidden state {number}", value)

    def report(self, folder, model):
        """The student's structure, where it can be pruned."""
        if model.encoder.prunable_groups():
            write_structure(folder, model.encoder)


class Projections(nn.Module):
    """States of a student → of the teacher's width, each by a map of its own.

    Arguments
    ---------
    width, target : int
    count : int
        How many states.
    mlp : bool
        Linear → GELU → Linear in place of one linear map.
    """

    def __init__(self, width, target, count, mlp=False):
        super().__init__()
        self.maps = nn.ModuleList(
            nn.Sequential(
                *(nn.Linear(width, target), nn.GELU(), nn.Linear(target, target))
            )
            if mlp
            else nn.Linear(width, target)
            for _ in range(count)
        )

    def forward(self, states):
        """List of [B, T, C] → list of [B, T, C']."""
        return [layer(state) for layer, state in zip(self.maps, states, strict=True)]
