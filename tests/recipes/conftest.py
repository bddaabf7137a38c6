"""Loading a YAML file of the recipes as its script would, with a tiny encoder."""

import json
import re

import pytest
from hparams_files import FILES, SMALLER, function_of, script_of
from recipe_scripts import RECIPE, script
from tiny_encoder import waveform_config
from tiny_training import tiny_config

from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.utils.config import load_run

# Module and class of an encoder → its tiny configuration
CONFIGURATIONS = {
    "w2v_bert.W2VBertEncoder": lambda: tiny_config().to_dict(),
    "wav2vec2.Wav2Vec2Encoder": lambda: waveform_config("wav2vec2").to_dict(),
    "wav2vec2.HubertEncoder": lambda: waveform_config("hubert").to_dict(),
    "wav2vec2.UniSpeechSatEncoder": lambda: waveform_config("unispeech-sat").to_dict(),
    "wavlm.WavLMEncoder": lambda: waveform_config("wavlm").to_dict(),
    "whisper.WhisperEncoder": lambda: {
        "model_type": "whisper",
        "d_model": 16,
        "encoder_layers": 25,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 8,
    },
    "nemo_conformer.NemoConformerEncoder": lambda: {
        "encoder": {"feat_in": 80, "n_layers": 2, "d_model": 16}
    },
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Configuration files of tiny encoders, and a pretrained folder of one."""
    folder = tmp_path_factory.mktemp("tiny")
    for name, configuration in CONFIGURATIONS.items():
        (folder / f"{name}.json").write_text(json.dumps(configuration()))
    model = SpeakerEncoder(W2VBertEncoder(tiny_config()), AdapterMFA(16, 2, 8, 256))
    save_pretrained(folder / "final", model, ArcFace(256, 3), {})
    return folder


@pytest.fixture
def load(tiny, tmp_path, monkeypatch):
    """Load a YAML file as its script would, with a tiny encoder."""
    monkeypatch.chdir(RECIPE)

    def load(name, *words, change=("", "")):
        text = FILES[name].read_text()
        assert change[0] in text
        path = tmp_path / FILES[name].name if change[0] else FILES[name]
        if change[0]:
            path.write_text(text.replace(*change, 1))
        values = {"output_folder": tmp_path / "out"}
        for key in re.findall(r"(\w+): !PLACEHOLDER", text):
            is_model = key in ("pretrained_folder", "teacher_folder", "student_folder")
            values[key] = tiny / "final" if is_model else tmp_path
        if "encoder_source:" in text:
            kind = re.search(r"encoder: !new:speechbrain_ext\.lobes\.([\w.]+)", text)
            values["encoder_source"] = tiny / f"{kind[1]}.json"
        given = [f"--{key}={value}" for key, value in values.items()]
        given += SMALLER.get(name, [])
        module = script(script_of(name))
        function = getattr(module, function_of(script_of(name)))
        return load_run([str(path), *given, *words], function)[3]

    return load
