"""A training step and its parts: time and memory against the published way.

    python benchmarks/training_step.py          # 6 full layers, 129,266 classes
    python benchmarks/training_step.py --toy    # 2 layers × 64, for CI

- **ArcFace**, forward and backward of 64 embeddings, against the formula as published:
  a margin on all cosines, and a dense one-hot matrix that chooses the target's.
- **AdamW**: one call for all weights (``fused``) against torch's default.
- **Step of stage 2**: features, encoder, Adapter-MFA, ArcFace, backward, clipping and
  AdamW, against the same with transformers' extractor (numpy, on the CPU) and encoder
  and the one-hot ArcFace.
- **Gradient checkpointing**: our step with it against our step without; the ratio of
  the times is what it costs, that of the memory what it brings.
- **torch.compile**: our step with every layer of the encoder compiled against our step
  without; the graph of one layer serves all. Compiling takes a C++ compiler and a
  minute or more, which a note tells; the toy leaves the C++ out of it.

- **Hybrid pruning**: our step with gates on every unit and a budget, of w2v-BERT and of
  WavLM Base+ with gates on whole layers as well, against the same step without: at most
  1.25 times the time and 1.15 times the memory.

Both sides have the same weights, without dropout, and losses equal within 1e-4.
"""

import os
import shutil
import tempfile
import time
from unittest import mock

import torch
from harness import (
    LeftOut,
    argument_parser,
    compare,
    peak_memory,
    report,
    summarise,
)
from transformers import (
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    WavLMConfig,
)

from speechbrain_ext.features.frames import SAMPLE_RATE
from speechbrain_ext.lobes.heads import MHFA, AdapterMFA
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.lobes.wavlm import WavLMEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pruning import Budget, add_gates

FULL = {
    "encoder": {"num_hidden_layers": 6},
    "classes": 129_266,  # VoxCeleb2 at three speeds and VoxBlink2
    "batch": 64,  # of ArcFace alone
    "crops": (4, 3),  # number, seconds
    "wavlm": {"num_hidden_layers": 3},
}
TOY = {
    "encoder": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    },
    "classes": 500,
    "batch": 8,
    "crops": (2, 1),
    "wavlm": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "conv_dim": [16] * 7,
        "num_conv_pos_embedding_groups": 4,
    },
}
EMBEDDING = 256
ALWAYS_OPEN = 100.0  # log α: z is 1 in every draw
ONE_HOT = {"peer_name": "one-hot ArcFace", "source": "the published formula"}
DEFAULT = {"peer_name": "torch's default", "source": "torch.optim.AdamW"}
PUBLISHED_WAY = {
    "peer_name": "published way",
    "source": "transformers' extractor and encoder, one-hot ArcFace",
}
WITHOUT = {"peer_name": "ours without", "source": "gradient_checkpointing=False"}
UNGATED = {"peer_name": "ours without gates", "source": "the same step"}
MARKS = {"time": 1 / 1.25, "memory": 1 / 1.15}  # with gates
EAGER = {"peer_name": "ours, eager", "source": "the same layers, not compiled"}


def main(argv=None):
    arguments = argument_parser(__doc__).parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    sizes = TOY if arguments.toy else FULL
    rows = [arcface(sizes, arguments.toy)]
    rows.append(adamw(sizes, arguments.toy))
    found, notes = steps(sizes, arguments.toy)
    for kind in (GatedStep, GatedWavLMStep):
        found += gated(kind, sizes, arguments.toy)
    report([*rows, *found], arguments, notes)


class OneHotArcFace(ArcFace):
    """The published formula on all of batch × classes."""

    def logits(self, embeddings, labels):
        cosine = self.cosines(embeddings)
        margin = torch.tensor(self.margin)
        sine = (1.0 - cosine.square()).clamp(min=1e-6).sqrt()
        moved = cosine * margin.cos() - sine * margin.sin()
        beyond = cosine <= (torch.pi - margin).cos()
        moved = torch.where(beyond, cosine - margin * margin.sin(), moved)
        one_hot = torch.zeros_like(cosine).scatter_(1, labels.view(-1, 1), 1.0)
        return self.scale * (one_hot * moved + (1.0 - one_hot) * cosine)


def arcface(sizes, toy):
    """Forward and backward of the classifier alone → Row."""
    ours = ArcFace(EMBEDDING, sizes["classes"])
    peer = OneHotArcFace(EMBEDDING, sizes["classes"])
    peer.load_state_dict(ours.state_dict())
    embeddings = torch.randn(sizes["batch"], EMBEDDING)
    labels = torch.randint(sizes["classes"], (sizes["batch"],))

    def run(module):
        module.zero_grad()
        loss = module(embeddings.requires_grad_(True), labels)
        loss.backward()
        return float(loss.detach())

    check_equal(run(ours), run(peer))
    return compare(
        f"ArcFace, {sizes['batch']} × {sizes['classes']:,} classes",
        lambda: run(ours),
        lambda: run(peer),
        toy=toy,
        memory=True,
        **ONE_HOT,
    )


def adamw(sizes, toy):
    """One step over the weights of the encoder → Row."""
    shapes = [p.shape for p in W2VBertEncoder(config_of(sizes)).parameters()]

    def optimiser(**options):
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        return torch.optim.AdamW(parameters, lr=1e-4, **options).step

    return compare(
        f"AdamW, {sum(shape.numel() for shape in shapes) / 1e6:.3g} M weights",
        optimiser(fused=True),
        optimiser(),
        toy=toy,
        **DEFAULT,
    )


def steps(sizes, toy):
    """Whole steps → (rows, notes)."""
    number, seconds = sizes["crops"]
    wavs = 0.1 * torch.randn(number, seconds * SAMPLE_RATE)
    labels = torch.randint(sizes["classes"], (number,))
    name = f"step of stage 2, {number} × {seconds} s"

    def side(kind, **options):
        step = kind(sizes, **options)
        return lambda: step(wavs, labels)

    def against(title, variant, peer):
        return compare(title, variant, ours, 5, 1, toy=toy, memory=True, **peer)

    ours, theirs = side(OurStep), side(PublishedStep)
    first = ours()  # every step moves the loss by 1e-5 of it
    check_equal(first, theirs())
    rows = [compare(name, ours, theirs, 5, 1, toy=toy, memory=True, **PUBLISHED_WAY)]
    del theirs
    recomputed = side(OurStep, gradient_checkpointing=True)
    rows.append(against(f"{name}, gradient checkpointing", recomputed, WITHOUT))
    del recomputed
    title = f"{name}, torch.compile"
    if reason := no_compiler():
        return [*rows, LeftOut(title, EAGER["peer_name"], reason)], []
    compiled = side(DryCompiledStep if toy else CompiledStep)
    took, loss = first_call(compiled)
    check_equal(loss, first)
    rows.append(against(title, compiled, EAGER))
    return rows, [f"torch.compile: the first step took {took:.3g} s"]


def gated(kind, sizes, toy):
    """A step with gates against the same without → rows of time and of memory."""
    number, seconds = sizes["crops"]
    wavs = 0.1 * torch.randn(number, seconds * SAMPLE_RATE)
    labels = torch.randint(sizes["classes"], (number,))
    with_gates, without = kind(sizes), kind(sizes, gates=False)

    def ours():
        return with_gates(wavs, labels)

    def peer():
        return without(wavs, labels)

    check_equal(ours(), peer())  # of gates that are open for good
    with_gates.close_some()
    name = f"{kind.title}, {number} × {seconds} s, with gates"
    time_row = compare(name, ours, peer, 5, 1, toy=toy, mark=MARKS["time"], **UNGATED)
    memory = [peak_memory(side)[1] / 2**20 for side in (ours, peer)]
    figures = [[mib] for mib in memory]
    return [
        time_row,
        summarise(f"{name}, memory", "MiB", *figures, mark=MARKS["memory"], **UNGATED),
    ]


def no_compiler():
    """Why torch.compile cannot make code for the CPU; None where it can."""
    name = os.environ.get("CXX", "g++")
    return None if shutil.which(name) else f"no C++ compiler ({name} not found)"


def first_call(function):
    """→ (seconds, result), nothing of earlier compilations being kept."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder),
    ):
        start = time.perf_counter()
        result = function()
        return time.perf_counter() - start, result


class OurStep:
    """wavs [B, T], labels [B] → loss, after the optimiser's step."""

    optimiser = {"fused": True}
    classifier = ArcFace

    def __init__(self, sizes, **options):
        torch.manual_seed(1)
        encoder, head = self.make(sizes, **options)
        self.loss = self.classifier(EMBEDDING, sizes["classes"])
        self.encoder, self.head = self.own(encoder), head
        parameters = [
            parameter
            for module in (self.encoder, self.head, self.loss)
            for parameter in module.parameters()
        ]
        self.parameters = parameters
        self.adamw = torch.optim.AdamW(parameters, lr=1e-9, **self.optimiser)

    def make(self, sizes, **options):
        """Encoder and head."""
        encoder = W2VBertEncoder(config_of(sizes), **options).eval()
        hidden = encoder.hidden_size
        head = AdapterMFA(hidden, encoder.n_states, embedding_size=EMBEDDING)
        return encoder, head.eval()

    def own(self, encoder):
        """The encoder in this side's form."""
        return encoder

    def penalty(self):
        """What is added to the loss of the classifier."""
        return 0.0

    def states(self, wavs):
        return self.encoder(wavs)

    def __call__(self, wavs, labels):
        loss = self.loss(self.head(*self.states(wavs)), labels) + self.penalty()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adamw.step()
        self.adamw.zero_grad()
        return float(loss.detach())


class GatedStep(OurStep):
    """Hybrid pruning of w2v-BERT; the size is counted in every step."""

    title, whole = "hybrid pruning of w2v-BERT", ()

    def __init__(self, sizes, gates=True):
        self.budget, self.step, self.gates = None, 0, gates
        super().__init__(sizes)

    def own(self, encoder):
        if self.gates:
            add_gates(encoder, whole=self.whole, log_alpha=ALWAYS_OPEN)
            self.budget = Budget(encoder, sparsity=0.3)
        return encoder

    def close_some(self):
        """Gates as in mid-training, with noise."""
        for name, module in self.encoder.named_modules():
            if name.endswith("gate"):
                module.train()
                for parameter in module.parameters():
                    torch.nn.init.normal_(parameter, 1.0, 2.0)

    def penalty(self):
        self.step += 1
        return 0.0 if self.budget is None else self.budget(self.step).loss


class GatedWavLMStep(GatedStep):
    """Of WavLM Base+, with gates on whole layers, as published."""

    title, whole = "hybrid pruning of WavLM Base+", ("heads", "ffn")

    def make(self, sizes):
        config = WavLMConfig(**sizes["wavlm"])
        encoder = WavLMEncoder(config)
        head = MHFA(encoder.hidden_size, encoder.n_states, EMBEDDING, 32)
        return encoder.eval(), head.eval()


class PublishedStep(OurStep):
    """Features by numpy, the stock encoder, a dense one-hot, torch's default AdamW."""

    optimiser = {}
    classifier = OneHotArcFace
    extractor = SeamlessM4TFeatureExtractor()

    def own(self, encoder):
        model = Wav2Vec2BertModel(encoder.config).eval()
        model.load_state_dict({**model.state_dict(), **encoder.state_dict()})
        return model

    def states(self, wavs):
        arrays = list(wavs.cpu().numpy())
        batch = self.extractor(arrays, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        features = batch["input_features"].to(wavs.device)
        output = self.encoder(features, output_hidden_states=True)
        return list(output.hidden_states), torch.ones(len(wavs))


class CompiledStep(OurStep):
    """Layer by layer: the features, with a loop over recordings, stay as they are."""

    backend = "inductor"

    def own(self, encoder):
        for layer in encoder.encoder.layers:
            layer.compile(backend=self.backend)
        return encoder


class DryCompiledStep(CompiledStep):
    """Graphs of forward and backward, run without code of their own: in seconds."""

    backend = "aot_eager"


def config_of(sizes):
    """Of the encoder, in ``sizes``."""
    return Wav2Vec2BertConfig(**sizes["encoder"])


def check_equal(ours, theirs):
    if not abs(ours - theirs) < 1e-4 * abs(theirs):
        raise SystemExit(f"losses {ours} and {theirs}, expected equal within 1e-4")


if __name__ == "__main__":
    main()
