"""The encoder's forward pass against the processor's limit, and against its peers.

    python benchmarks/encoder.py                        # 580 M parameters; 3, 10, 30 s
    python benchmarks/encoder.py --published FOLDER     # the published code beside it
    python benchmarks/encoder.py --toy                  # 4 layers × 64, 1 s, for CI

Three comparisons of [1, T, 160] features → all hidden states, with the same random
weights on both sides, which must agree within 1e-4 of the largest value:

1. the limit: our multiply-adds (of matrix products, attention and convolutions) at the
   rate of products of T rows and every feed-forward matrix of the same model, measured
   in turns with the forward pass. Each matrix is used once, as in that pass: those
   that fit into the cache together would be 5 % faster. The ratio is the share of that
   rate that is reached;
2. transformers' ``Wav2Vec2BertModel``, as installed;
3. the published code's model, dense and at its 0.8 structure, from ``--published``.
"""

import tempfile
from dataclasses import replace

import torch
from encoders import TOY, macs_of
from harness import LeftOut, argument_parser, compare, report
from published import PublishedEncoder, pruned_configuration
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

from speechbrain_ext.lobes.w2v_bert import (
    UNUSED,
    W2VBertEncoder,
    layer_shapes,
    with_layer_shapes,
)
from speechbrain_ext.profiling.layers import matrix_products
from speechbrain_ext.utils.allocator import keep_freed_memory
from speechbrain_ext.utils.weights import load_strictly

LENGTHS = (3.0, 10.0, 30.0)
GEMM_SHARE = 0.85
# times faster than the published code: structure → seconds → ratio
FASTER = {"dense": {10.0: 1.3, 30.0: 1.6}, "0.8": {3.0: 1.5, 10.0: 2.0, 30.0: 2.0}}
PUBLISHED = {"peer_name": "published code", "source": "ZXHY-82/w2v-BERT-2.0_SV"}


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, nargs="+", help="lengths, in place")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    keep_freed_memory()  # as the inference classes do
    config = Wav2Vec2BertConfig(**(TOY if arguments.toy else {}))
    dense = W2VBertEncoder(config).eval()
    rows = []
    with torch.inference_mode():
        for features, seconds in inputs(dense, arguments):
            rows.append(beside_gemm(dense, features, seconds, arguments))
        rows += beside_transformers(dense, arguments)
        if arguments.published:
            rows += beside_published(dense, arguments)
        else:
            rows.append(LeftOut("encoder, dense and 0.8", PUBLISHED["peer_name"]))
    report(rows, arguments)


def inputs(encoder, arguments):
    """Features [1, T, 160] and their length in seconds."""
    lengths = [1.0] if arguments.toy else arguments.seconds or LENGTHS
    return [(torch.randn(encoder.example(s)[0].shape), s) for s in lengths]


def beside_gemm(encoder, features, seconds, arguments):
    """Forward pass against its multiply-adds at the rate of a matrix product."""
    products, macs = matrix_products(encoder, features.shape[1])
    row = timed(
        f"dense, {seconds:g} s, at the rate of a matrix product",
        lambda: encoder.encode(features),
        products,
        seconds,
        arguments,
        peer_name="matrix product",
        source="torch.nn.functional.linear, T rows × every feed-forward matrix",
        mark=GEMM_SHARE,
    )
    scale = macs_of(encoder, seconds) / macs
    return replace(row, peer=row.peer * scale, peer_spread=row.peer_spread * scale)


def beside_transformers(encoder, arguments):
    """The same weights in the installed transformers → rows."""
    model = Wav2Vec2BertModel(encoder.config).eval()
    load_strictly(encoder, model.state_dict(), "transformers", ignore=UNUSED)
    return [
        beside(
            f"encoder, dense, {seconds:g} s",
            lambda features=features: encoder.encode(features),
            lambda features=features: states_of(model, features),
            seconds,
            arguments,
            peer_name="transformers",
            source="Wav2Vec2BertModel",
        )
        for features, seconds in inputs(encoder, arguments)
    ]


def states_of(model, features):
    """All hidden states of a model of transformers."""
    return model(features, output_hidden_states=True).hidden_states


def beside_published(dense, arguments):
    """Dense and, at full size, the published structure at 80 % sparsity → rows."""
    whole = with_layer_shapes(dense.config, layer_shapes(dense.config))
    values = {**whole.to_dict(), "prune": False}
    rows = beside_structure("dense", dense, values, arguments)
    if not arguments.toy:
        values = pruned_configuration(arguments.published)
        pruned = W2VBertEncoder(Wav2Vec2BertConfig(**values)).eval()
        rows += beside_structure("0.8", pruned, values, arguments)
    return rows


def beside_structure(name, encoder, values, arguments):
    """Our weights in the published code's encoder → rows."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        peer = PublishedEncoder(
            arguments.published,
            values,
            encoder.state_dict(),
            arguments.threads,
            scratch,
        )
        for features, seconds in inputs(encoder, arguments):
            peer.take(features)
            row = beside(
                f"encoder, {name}, {seconds:g} s",
                lambda features=features: encoder.encode(features),
                peer,
                seconds,
                arguments,
                states=peer.states,
                mark=FASTER[name].get(seconds),
                **PUBLISHED,
            )
            rows.append(row)
        peer.close()
    return rows


def beside(name, ours, theirs, seconds, arguments, *, states=None, **about):
    """Equal states of both, then both in turns → Row.

    ``states`` gives the peer's where ``theirs`` only runs.
    """
    check_equal(ours(), (states or theirs)(), about["peer_name"])
    return timed(name, ours, theirs, seconds, arguments, **about)


def check_equal(ours, theirs, peer_name):
    """All hidden states within 1e-4 of the largest value."""
    for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        error = float((own - other).abs().max() / other.abs().max())
        if not error < 1e-4:
            raise SystemExit(
                f"state {number} differs from that of {peer_name} by {error}, "
                "expected 1e-4 at most"
            )


def timed(name, ours, theirs, seconds, arguments, **about):
    """Fewer rounds for long recordings, whose peers take most of a minute."""
    rounds = (5, 1) if seconds < 20 else (2, 0)
    return compare(name, ours, theirs, *rounds, toy=arguments.toy, **about)


if __name__ == "__main__":
    main()
