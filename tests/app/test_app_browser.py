"""The Space of the templates in a process of its own, and a real browser on it.

The browser needs Debian's packages chromium and chromium-driver; where they are not
installed, the same server is asked over HTTP.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from page_client import compare
from tiny_speech import spoken
from tiny_verifier import add_backend, load, make_folder

from speechbrain_ext import __version__
from speechbrain_ext.inference.voices import Voices

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "hparams_templates/space"
PATIENCE, AGAIN = 300, 20  # seconds, of a busy machine
SPOKEN = 2  # seconds to be recorded
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--disable-dev-shm-usage"),
    *("--window-size=1100,1330", "--use-fake-ui-for-media-stream"),
    "--use-fake-device-for-media-stream",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    inference = {"as_norm_top_n": 4, "speech_detection": True}
    model = make_folder(folder / "model", inference=inference)
    add_backend(model, folder / "voices")
    return model


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two takes of one voice, silence, and a file that is no sound."""
    folder = tmp_path_factory.mktemp("clips")
    wavs = {"a": spoken("f2"), "b": spoken("f2", seed=2), "silent": np.zeros(32000)}
    for name, wav in wavs.items():
        soundfile.write(folder / f"{name}.wav", wav, 16000)
    (folder / "corrupt.wav").write_bytes(bytes(range(256)) * 20)
    return {name: str(folder / f"{name}.wav") for name in (*wavs, "corrupt")}


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    """The Space's own app.py, served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = str(tmp_path_factory.mktemp("kept"))
    env = {"MODEL": str(model), "GRADIO_SERVER_PORT": str(port)}
    env |= {"GRADIO_TEMP_DIR": kept, "CUDA_VISIBLE_DEVICES": ""}
    server = subprocess.Popen(
        [sys.executable, "app.py"], cwd=SPACE, env={**os.environ, **env}
    )
    try:
        address = f"http://127.0.0.1:{port}/"
        _wait(lambda: _answers(address) or server.poll() is not None)
        assert server.poll() is None
        yield address
    finally:
        server.terminate()
        server.wait(30)


def _answers(address):
    try:
        return urllib.request.urlopen(address, timeout=10).status == 200
    except OSError:
        return False


def _wait(ready, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing after {seconds} s")
        time.sleep(0.1)
    return found


def test_the_space_answers(url, model, clips):
    page = compare(url, clips["a"], clips["b"])
    assert f"{load(model).compare(clips['a'], clips['b']).llr:.3f}" in page


def test_what_the_hub_reads_of_the_space():
    pins = (ROOT / "constraints.txt").read_text().split()
    front = (SPACE / "README.md").read_text().split("---")[1]
    gradio = next(line for line in front.splitlines() if line.startswith("sdk_version"))
    assert gradio.replace("sdk_version: ", "gradio==") in pins
    assert "app_file: app.py" in front
    requirements = (SPACE / "requirements.txt").read_text().splitlines()
    wanted = [line for line in requirements if not line.startswith("#")]
    wheel = f"./speechbrain_ext-{__version__}-py3-none-any.whl[app]"
    assert wanted[0] == wheel
    assert set(wanted[1:]) <= set(pins)


# ---- the browser ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(clips, tmp_path_factory):
    """Headless Chromium, whose microphone hears clip a."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed")
    pytest.importorskip("selenium")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        *FLAGS,
        f"--user-data-dir={profile}",
        f"--use-file-for-fake-audio-capture={clips['a']}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.ChromeService(DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, url):
    """The page, freshly loaded."""
    browser.get_log("performance")  # what an earlier test asked for
    browser.get(url)
    _wait(lambda: len(_all(browser, "#enrol input[type=file]")) == 1)
    _wait(lambda: len(_all(browser, "#test input[type=file]")) == 1)
    return browser


def _all(browser, selector):
    return browser.find_elements("css selector", selector)


def _upload(browser, element, path):
    _all(browser, f"#{element} input[type=file]")[0].send_keys(path)
    # the field makes way for the player once the server has the file
    _wait(lambda: not _all(browser, f"#{element} input[type=file]"))


def _compare(browser):
    _all(browser, "#compare")[0].click()
    verdict = _wait(lambda: _all(browser, "#result .verdict"))[0]
    return _wait(lambda: verdict.text)


def _hosts(browser):
    """Hosts that the page asked for anything, by the browser's own log."""
    messages = [
        json.loads(entry["message"])["message"]
        for entry in browser.get_log("performance")
    ]
    urls = [
        urlsplit(message["params"]["request"]["url"])
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    return {
        url.hostname for url in urls if url.scheme in ("http", "https", "ws", "wss")
    }


def test_two_uploads_are_compared_and_nobody_else_is_asked(page, model, clips):
    _upload(page, "enrol", clips["a"])
    _upload(page, "test", clips["b"])
    text = _compare(page)
    found = load(model).compare(clips["a"], clips["b"])
    title = "Same speaker" if found.decision else "Different speakers"
    assert text.splitlines()[0] == title
    assert f"{found.llr:.3f}" in text.splitlines()[1]
    pictures = _all(page, "#result img")
    assert len(pictures) == 3
    for picture in pictures:
        _wait(lambda picture=picture: picture.get_attribute("complete"))
        assert int(picture.get_attribute("naturalWidth")) > 400
        assert picture.is_displayed()
    assert _hosts(page) == {"127.0.0.1"}


def _open_tab(browser, name):
    def opened():
        for tab in _all(browser, "button[role=tab]"):
            if tab.text == name and tab.is_displayed():
                tab.click()
                return True
        return False

    _wait(opened)


def _answer(browser, button, result):
    """What stands in ``result`` once the button's answer has come."""

    def text():
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return browser.execute_script(script, f"#{result} .verdict")

    before = text()  # Gradio changes elements in their place
    _all(browser, f"#{button}")[0].click()
    return _wait(lambda: (after := text()) != before and after)


def test_voices_are_enrolled_identified_and_removed(page, model, clips):
    _open_tab(page, "Enrol")
    _wait(lambda: _shown(page, "#name textarea, #name input"))[0].send_keys("Zoë")
    _upload(page, "voice", clips["a"])
    assert _answer(page, "enrol_voice", "enrolled").splitlines()[0] == "Enrolled: Zoë"
    _wait(lambda: "Zoë" in _all(page, "#voices")[0].text)
    _open_tab(page, "Identify")
    _upload(page, "unknown", clips["b"])
    text = _answer(page, "identify", "identified")
    verifier = load(model)
    voices = Voices(verifier)
    voices.add("Zoë", clips["a"])
    found = verifier.identify(clips["b"], voices)
    assert text.splitlines()[0] == (found.voice or "Unknown")
    table = _all(page, "#identified .candidates")[0].text
    assert f"{found.candidates[0].cosine:.3f}" in table
    assert len(_all(page, "#identified img")) == 2
    page.find_element("css selector", "#unknown [aria-label='Clear']").click()
    _wait(lambda: _all(page, "#unknown input[type=file]"))
    _upload(page, "unknown", clips["silent"])
    assert _answer(page, "identify", "identified").startswith("No speech found")
    assert _all(page, "#identified .verdict.none")
    _open_tab(page, "Enrol")
    _wait(lambda: _shown(page, "#removed input"))[0].click()
    _wait(lambda: _shown(page, "[role=option]"))[0].click()
    _all(page, "#remove")[0].click()
    _wait(lambda: "Zoë" not in _all(page, "#voices")[0].text)
    assert _hosts(page) == {"127.0.0.1"}


def test_a_corrupt_upload_is_told_in_the_page(page, clips):
    _upload(page, "enrol", clips["corrupt"])
    _upload(page, "test", clips["b"])
    title, reason = _compare(page).splitlines()
    assert title == "Not compared"
    assert reason.startswith(
        "Clip 1, the known speaker (corrupt.wav): cannot be opened as sound"
    )
    assert not _all(page, "#result img")


def _shown(browser, selector):
    """Elements that a user could click."""
    return [found for found in _all(browser, selector) if found.is_displayed()]


def _click_until(browser, selector, ready):
    """Click, and again where nothing comes of it: a page may not listen yet."""
    from selenium.common.exceptions import WebDriverException

    def clicked():
        # what is replaced between being found and being used is looked for again
        with contextlib.suppress(WebDriverException, IndexError, TimeoutError):
            if not ready():
                _shown(browser, selector)[0].click()
            return _wait(ready, AGAIN)
        return None

    return _wait(clicked)


def _recorded(browser):
    """Seconds on the recorder's own clock."""
    clocks = _all(browser, "#enrol .timestamps .duration")
    texts = [clock.get_attribute("textContent") for clock in clocks]
    minutes, _, seconds = (texts or ["0:00"])[0].partition(":")
    return 60 * int(minutes) + int(seconds)


def test_the_microphone(page, clips):
    _upload(page, "test", clips["a"])
    record, stop = "#enrol .record-button", "#enrol .stop-button"
    _click_until(
        page, "#enrol [aria-label='Record audio']", lambda: _shown(page, record)
    )
    _click_until(page, record, lambda: _shown(page, stop))
    _wait(lambda: _recorded(page) >= SPOKEN)
    _click_until(page, stop, lambda: _all(page, "#enrol .play-pause-button"))
    decisions = ("Same speaker", "Different speakers")
    # once the recording is with the server
    _click_until(
        page,
        "#compare",
        lambda: [e for e in _all(page, "#result .verdict h2") if e.text in decisions],
    )
    assert "audio.wav" in _all(page, "#result")[0].text
