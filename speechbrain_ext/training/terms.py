"""Terms of a training loss: what a YAML file lists under ``terms``.

    loss = Σ terms          stages 1 to 3     Classification
                            pruning 1, 2      Distillation (+ Budget)
                            hybrid pruning    Classification + Budget
                            students          Classification + Distillation

A term brings the modules that it trains beside the encoder, what its optimiser groups
and log columns are, and what it does to the model at the end. It is made from a YAML
file before anything is known of the data: :meth:`Term.setup` tells it. A new term is a
subclass of :class:`Term` in any file that Python can import.
"""

import logging
from collections.abc import Callable

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveInt

from speechbrain_ext.inference.extraction import extract_embeddings
from speechbrain_ext.pruning import add_gates, harden, prune
from speechbrain_ext.pruning.costs import mac_costs, parameter_costs
from speechbrain_ext.pruning.plots import plot_progress, write_structure
from speechbrain_ext.training.brain import read_steps
from speechbrain_ext.training.classifiers import load_classifier

logger = logging.getLogger(__name__)

IMPRINTED_UTTERANCES = 20  # of each speaker, as in the cohort of verify.py
SPREAD = 0.1  # how far from their mean each of several centres begins


class Term:
    """One summand of a loss. Every method may be left as it is, but :meth:`loss`.

    Attributes
    ----------
    needs_states, needs_embeddings : bool
        What of the model's outputs :meth:`loss` reads. The head trains where some
        term needs embeddings.
    reads_last : bool
        Whether :meth:`loss` reads the last state, with all layers before it.
    latest_is_best : bool
        Whether the latest epoch is the best whatever the validation says.
    warmup_steps : int or None
        Optimiser steps of a schedule that counts those.
    """

    needs_states = False
    needs_embeddings = False
    reads_last = True
    latest_is_best = False
    warmup_steps = None

    def setup(self, speaker_encoder, data):
        """Learn what is trained, and on what; may change the encoder in place.

        Arguments
        ---------
        speaker_encoder : SpeakerEncoder
        data : TrainingData
        """

    def modules(self):
        """Name → module that this term trains, saves and clips by its own norm."""
        return {}

    def to(self, device):
        """Move what is no trained module."""

    def begin(self, brain, data):
        """Before a run's first step; not where a checkpoint is continued from."""

    def check_resumed(self):
        """InputError: what the latest checkpoint was trained by does not go with this.

        Called before the first step, the checkpoint loaded, if there is one.
        """

    def groups(self, modules):
        """Optimiser groups with a learning rate of their own → list of dict.

        ``modules`` are all trained ones, by name. What is in no group follows the
        run's learning rate.
        """
        return []

    def on_step(self, modules, progress):
        """Set what follows a schedule; ``progress`` counts epochs."""

    def before(self, wavs, x, lens, encoder):
        """Compute what needs no gradient, before the student's activations are there.

        Arguments
        ---------
        wavs : torch.Tensor
            [B, T].
        x : torch.Tensor
            What ``encoder.front_end`` made of them.
        lens : torch.Tensor or None
            None where nothing is padded, as in every batch of crops.
        encoder : Encoder
            The one that trains.
        """

    def loss(self, outputs, modules, step):
        """This term's part of the loss, a scalar.

        Arguments
        ---------
        outputs : Outputs
            ``embeddings`` [B, 1, E], ``states`` list of [B, T', C], ``lens`` [B] or
            None, and ``labels`` [B].
        modules : mapping
            All trained modules by name, wrapped for several processes where there are.
        step : int
            Optimiser steps done.
        """
        raise NotImplementedError

    def columns(self):
        """Name → value of the last step, for steps.csv.

        Tensors are averaged over the batches of an optimiser step; of numbers the last
        counts.
        """
        return {}

    def check_finite(self, check):
        """Call ``check(name, value)`` for every part of a loss that is not finite."""

    def epoch_stats(self, modules):
        """Name → number, for an epoch's line in the log."""
        return {}

    def finish(self, speaker_encoder, modules):
        """The trained model → the model to save (itself, as a rule)."""
        return speaker_encoder

    def saved(self):
        """(classifier to save or None, dict for training.json)."""
        return None, {}

    def report(self, folder, model):
        """Write pictures and tables into the output folder, on the main process."""


class Classification(Term):
    """Which training speaker is it: stages 1 to 3.

    Arguments
    ---------
    classifier : callable
        (``embedding_size=``, ``n_classes=``) → module (embeddings, labels) → loss, as
        :class:`~speechbrain_ext.losses.ArcFace`.
    margin_schedule : callable, optional
        Progress in epochs → the classifier's ``margin``.
    pretrained_folder : str, optional
        A former stage's folder, whose classifier is continued: rows go by the names
        of the speakers.
    new_classifier : bool
        The speakers are others than that stage's: the rows begin at their mean
        embeddings.

    Raises
    ------
    InputError
        From :meth:`setup`: a classifier without these speakers.
    """

    needs_embeddings = True

    def __init__(
        self,
        classifier: Callable,
        margin_schedule: Callable | None = None,
        pretrained_folder: str | None = None,
        new_classifier: bool = False,
    ):
        self.factory = classifier
        self.margin_schedule = margin_schedule
        self.pretrained_folder = pretrained_folder
        self.new_classifier = new_classifier

    def setup(self, speaker_encoder, data):
        """Make the classifier, or load the former stage's."""
        self.training = {
            "speakers": data.speakers,
            "n_speeds": data.n_speeds,
            "n_perturbed": data.n_perturbed,
        }
        self.classes = data.dataset.classes
        self.classifier = self.factory(
            embedding_size=speaker_encoder.embedding_size, n_classes=self.classes.count
        )
        if self.pretrained_folder and not self.new_classifier:
            load_classifier(self.pretrained_folder, self.classifier, **self.training)

    def modules(self):
        """The classifier."""
        return {"classifier": self.classifier}

    def begin(self, brain, data):
        """A new classifier begins at the means of its speakers."""
        if self.new_classifier:
            self._imprint(brain, data)

    def _imprint(self, brain, data):
        """Set the rows to the mean embeddings of their speakers, at their own length.

        w_s = mean over recordings r of speaker s of e_r / |e_r|: the imprinted weights
        of Qi et al. 2018 (arXiv 1712.07136), section 3.2. From random rows a pretrained
        encoder would be pulled about for as long as the classifier looks for its
        speakers. The rows of a speaker at other speeds begin at the same place.
        """
        manifest = data.manifest
        first = first_of_each(manifest.labels, IMPRINTED_UTTERANCES)
        logger.info("the classifier begins at the means of %d recordings", len(first))
        vectors = extract_embeddings(
            brain.embedder(),
            manifest.select(first),
            brain.device,
            data.valid_batch_seconds,
            data.crop_seconds[1],  # so that the means are of what training will see
            progress=False,
        )
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        means = np.zeros((len(data.speakers), vectors.shape[1]))
        np.add.at(means, manifest.labels[first], vectors)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        rows = [speaker for speaker, _ in self.classes.speakers_and_speeds()]
        with torch.no_grad():
            weight = self.classifier.weight
            directions = torch.from_numpy(means[rows]).to(weight)
            length = weight.norm(dim=-1, keepdim=True)
            if weight.dim() == 3:  # centres that are equal would stay so
                directions = directions.unsqueeze(1) + SPREAD * weight / length
                directions /= directions.norm(dim=-1, keepdim=True)
            weight.copy_(directions * length)

    def on_step(self, modules, progress):
        """Set the margin."""
        if self.margin_schedule is not None:
            self.classifier.margin = self.margin_schedule(progress)

    def loss(self, outputs, modules, step):
        """Embeddings and labels → cross-entropy."""
        return modules["classifier"](outputs.embeddings, outputs.labels)

    def epoch_stats(self, modules):
        """Margin of the last step, where the classifier has one."""
        has_margin = hasattr(self.classifier, "margin")
        return {"margin": self.classifier.margin} if has_margin else {}

    def saved(self):
        """The classifier, and whose rows it has."""
        return self.classifier, self.training


class Budget(Term):
    """λ₁ (s − t) + λ₂ (s − t)²: gates are driven to a size while the encoder learns.

    Weights and log α descend, λ₁ and λ₂ ascend, each with a learning rate of its own
    and, but for the weights, without weight decay. At the end the encoder is pruned to
    its target.

    Arguments
    ---------
    budget : callable
        Encoder with gates → :class:`speechbrain_ext.pruning.Budget`.
    gates : callable, optional
        Puts gates into an encoder; :func:`speechbrain_ext.pruning.add_gates` by
        default.
    gate_lr, multiplier_lr : float
        Learning rates of log α, and of λ₁ and λ₂.
    multiple : int
        Widths that shrink become multiples of it: 8 suits tensor cores.
    """

    latest_is_best = True  # earlier epochs' encoders are larger

    def __init__(
        self,
        budget: Callable,
        gates: Callable = add_gates,
        gate_lr: NonNegativeFloat = 0.02,
        multiplier_lr: NonNegativeFloat = 0.02,
        multiple: PositiveInt = 1,
    ):
        self.make_budget = budget
        self.add_gates = gates
        self.gate_lr = gate_lr
        self.multiplier_lr = multiplier_lr
        self.multiple = multiple

    @property
    def warmup_steps(self):
        """Optimiser steps in which the target rises."""
        return self.budget.warmup_steps

    def setup(self, speaker_encoder, data):
        """Put gates into the encoder."""
        encoder = speaker_encoder.encoder
        self.add_gates(encoder)
        self.budget = budget = self.make_budget(encoder)
        self.counts = {
            "parameters": parameter_costs(encoder),
            "macs": mac_costs(encoder),
        }
        self.values = {}
        logger.info(
            "to leave: %d of %d %s, sparsity %.4f after %d steps",
            *(budget.target_cost, budget.costs.full, budget.costs.measure),
            *(budget.target, budget.warmup_steps),
        )

    def modules(self):
        """The multipliers."""
        return {"budget": self.budget}

    def groups(self, modules):
        """Gates; and the multipliers, which ascend. Weight decay would open gates."""
        named = modules["speaker_encoder"].named_parameters()
        gates = [p for name, p in named if name.endswith("log_alpha")]
        multipliers = list(modules["budget"].parameters())
        return [
            {"params": gates, "lr": self.gate_lr, "weight_decay": 0.0},
            {
                "params": multipliers,
                "lr": self.multiplier_lr,
                "weight_decay": 0.0,
                "maximize": True,
            },
        ]

    def loss(self, outputs, modules, step):
        """The Lagrangian of the expected size."""
        penalty = modules["budget"](step)
        self.values = {  # tensors: whoever reads a number of a GPU waits for it
            "sparsity": penalty.sparsity,
            "target": penalty.target,
            "lambda1": self.budget.lambda1.detach().clone(),
            "lambda2": self.budget.lambda2.detach().clone(),
        }
        self.penalty = penalty.loss
        return penalty.loss

    def columns(self):
        """Sparsity, its target, the multipliers, and the Lagrangian."""
        return {**self.values, "lagrangian": self.penalty}

    def check_finite(self, check):
        """The Lagrangian with what it is made of."""
        values = ", ".join(f"{k} {v:.4g}" for k, v in self.values.items())
        check(f"Lagrangian ({values})", self.penalty)

    def epoch_stats(self, modules):
        """Where the pruning is; what would be left now, and its MACs of 1 s."""
        now = {k: float(value) for k, value in self.values.items()}
        return now | {k: c.remaining() for k, c in self.counts.items()}

    def finish(self, speaker_encoder, modules):
        """Take the units of closed gates out."""
        harden(self.budget, self.multiple)
        left = {k: (c.remaining(), c.full) for k, c in self.counts.items()}
        logger.info(
            "left: %d of %d parameters, %d of %d multiply-adds of 1 s",
            *(*left["parameters"], *left["macs"]),
        )
        speaker_encoder.encoder = prune(speaker_encoder.encoder)
        return speaker_encoder

    def report(self, folder, model):
        """Structure; and sparsity, multipliers and loss by step."""
        write_structure(folder, model.encoder)
        plot_progress(folder / "steps.png", read_steps(folder / "steps.csv"))


def first_of_each(labels, count):
    """Rows of the first ``count`` recordings of each speaker: int64 [M], ascending."""
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[place < count])
