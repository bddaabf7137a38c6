"""Model folders that commit c9b6a38 wrote: each loads and gives its stored embedding.

Beside each model lies expected.npz: a waveform and the embedding that the model gave;
of exports also a second one, and what ``compare`` said of the two.
"""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ext.inference import SpeakerVerifier
from speechbrain_ext.inference.speech import SpeechConfig
from speechbrain_ext.lobes import heads
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.pretrained import load_pretrained, load_trainable, save_pretrained

FOLDERS = Path(__file__).parent / "data_files/old_folders"
HEADS = {"mfa": heads.MFA, "weighted_ecapa": heads.WeightedSumECAPA}


def embedding(model, wav):
    with torch.no_grad():
        return model(torch.from_numpy(wav)[None])[0, 0].numpy()


@pytest.mark.parametrize("folder", sorted(FOLDERS.iterdir()), ids=lambda f: f.name)
def test_embedding_is_as_it_was(folder, tmp_path):
    expected = np.load(folder / "expected.npz")
    model = load_pretrained(folder)
    assert type(model.encoder) is W2VBertEncoder
    assert type(model.head) is HEADS.get(folder.name, heads.AdapterMFA)
    for wav, value in (("wav", "embedding"), ("wav2", "embedding2")):
        if wav in expected:
            found = embedding(model, expected[wav])
            np.testing.assert_allclose(found, expected[value], atol=1e-4)
    again = load_pretrained(save_pretrained(tmp_path / "again", model))
    found = embedding(again, expected["wav"])
    np.testing.assert_array_equal(found, embedding(model, expected["wav"]))
    load_trainable(folder, gradient_checkpointing=True)


@pytest.mark.parametrize("name", ["exported", "exported_half"])
def test_decision_is_as_it_was(name, tmp_path):
    expected = np.load(FOLDERS / name / "expected.npz")
    for wav in ("wav", "wav2"):
        soundfile.write(tmp_path / f"{wav}.wav", expected[wav], 16000, subtype="FLOAT")
    verifier = SpeakerVerifier.from_hparams(str(FOLDERS / name))
    assert verifier.speech == SpeechConfig()  # without keys of it in their files
    wavs = tmp_path / "wav.wav", tmp_path / "wav2.wav"
    found = verifier.compare(*wavs, speech_detection=False)  # they are noise
    for name in ("cosine", "as_norm", "llr", "probability", "threshold"):
        value = float(expected[name])
        assert getattr(found, name) == pytest.approx(value, rel=1e-3, abs=1e-3)
    assert found.score == expected["score"]  # the name of the one that decides
    assert found.decision == expected["decision"]
