"""Embedding with onnxruntime, exact and with 8-bit weights, against torch.

    python benchmarks/onnx_embedding.py          # small encoder, 3 and 10 s
    python benchmarks/onnx_embedding.py --toy    # tiny encoder, 1 s, for CI

The peer is the same model in torch's inference mode, on the same recordings, with the
same number of threads; for the size, its safetensors. Weights are random: sizes and
seconds do not depend on them. Cosines do, so the one printed here tells only that
nothing is broken; that of a model of one's own is in the report of its export, which
also checks that embeddings are equal within 1e-4.
"""

import tempfile
from pathlib import Path

import torch
from harness import argument_parser, compare, report, summarise

from speechbrain_ext.export.onnx.check import graph_alone, speech_like
from speechbrain_ext.export.onnx.export import export_onnx
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder, read_config
from speechbrain_ext.pretrained import MODEL_FILE, save_pretrained

ENCODERS = Path(__file__).parents[1] / "recipes/VoxCeleb/SpeakerRec/hparams/encoders"
SECONDS, TOY_SECONDS = (3, 10), (1,)
PEER = {"peer_name": "torch", "source": "SpeakerEncoder in inference mode"}
FILE = {"peer_name": "safetensors", "source": "save_pretrained of the same model"}


def main(argv=None):
    arguments = argument_parser(__doc__).parse_args(argv)
    torch.set_num_threads(arguments.threads)
    model = make_model(arguments.toy)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(model, Path(folder), arguments)
    report(rows, arguments)


def make_model(toy):
    """A random encoder of the recipe's small size, or of one layer, with its head."""
    torch.manual_seed(0)
    config = read_config(ENCODERS / ("tiny.json" if toy else "small.json"))
    if toy:
        config.num_hidden_layers = 1
    encoder = W2VBertEncoder(config)
    head = AdapterMFA(
        encoder.hidden_size, encoder.n_states, adapter_size=64, embedding_size=192
    )
    return SpeakerEncoder(encoder, head).eval()


def measure(model, folder, arguments):
    """Seconds and sizes of both files → rows."""
    kinds = ("int8",) if arguments.toy else ("fp32", "int8")  # exporting takes long
    reports = {
        kind: export_onnx(model, folder / f"{kind}.onnx", int8=kind == "int8")
        for kind in kinds
    }
    saved = (save_pretrained(folder / "model", model) / MODEL_FILE).stat().st_size
    rows = []
    for kind in kinds:
        path = folder / f"{kind}.onnx"
        name = kind
        if kind == "int8":
            name = f"int8 (cosine {reports[kind]['worst_cosine']:.4f})"
        size = path.stat().st_size
        sizes = [size / 2**20], [saved / 2**20]
        rows.append(summarise(f"{name}, file", "MiB", *sizes, **FILE))
        encoder = graph_alone(path, arguments.threads)
        for seconds in TOY_SECONDS if arguments.toy else SECONDS:
            wav = speech_like(
                seconds * encoder.sample_rate, encoder.sample_rate, seed=0
            )
            of = f"{name}, {seconds} s"
            rows.append(compare_with_torch(of, encoder, model, wav, arguments.toy))
    return rows


def compare_with_torch(name, encoder, model, wav, toy):
    """One recording, [T], through both."""
    batch = torch.from_numpy(wav)[None]

    @torch.inference_mode()
    def peer():
        return model(batch)

    return compare(name, lambda: encoder.embed(wav), peer, toy=toy, **PEER)


if __name__ == "__main__":
    main()
