"""Sharing an exported folder on the Hugging Face hub.

What would be sent is planned and checked first, without any network; that is all that a
dry run does. Then the repository is created, private unless asked otherwise, and the
folder uploaded as one commit by huggingface_hub.
"""

import glob
import re
from pathlib import Path
from typing import NamedTuple

import safetensors
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from speechbrain_ext.export.card import FILES, check_card
from speechbrain_ext.export.folder import is_export, read_training
from speechbrain_ext.pretrained import (
    ENCODER_CONFIG,
    HYPERPARAMS,
    INTERFACE_FILE,
    MODEL_FILE,
    TRAINING,
    configuration_of,
)
from speechbrain_ext.utils.errors import InputError

NEEDED = (HYPERPARAMS, MODEL_FILE, TRAINING, "README.md")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
# A file that hyperparams.yaml names: !ref <pretrained_path>/encoder_config.json
NAMED = re.compile(r"<pretrained_path>/([\w.-]+)")


class Plan(NamedTuple):
    """What a push sends; ``files``: (name, bytes), sorted by name."""

    folder: Path
    repo_id: str
    private: bool
    files: list

    def lines(self):
        """As people read it."""
        access = "private, where it is new" if self.private else "PUBLIC, if it is new"
        yield f"{self.folder} → {constants.ENDPOINT}/{self.repo_id} ({access})"
        for name, size in self.files:
            note = "" if name in FILES else "    not written by the export"
            yield f"{size:>15,}  {name}{note}"
        total = sum(size for _, size in self.files)
        yield f"{total:>15,}  bytes in {len(self.files)} files"


def plan_push(folder, repo_id=None, private=True):
    """Find and check all that a push would send. No network.

    Arguments
    ---------
    folder : str or Path
        Written by :func:`~speechbrain_ext.export.folder.export_model`.
    repo_id : str, optional
        ``owner/name``; None takes the name that the export was given.
    private : bool
        Of a repository that is new; one that is there stays as it is.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        No export, a file that is missing or damaged, no name or one that the hub does
        not allow, a card without what people must know.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not is_export(folder):
        raise InputError(
            f"{folder}: not an exported folder, expected one of `python -m "
            "speechbrain_ext export`"
        )
    needed = list(NEEDED)
    if (folder / HYPERPARAMS).is_file():
        text = (folder / HYPERPARAMS).read_text(encoding="utf-8")
        needed += NAMED.findall(text)
        needed += [ENCODER_CONFIG] * (configuration_of(folder) is not None)
        needed += [INTERFACE_FILE] * ("\npretrainer:" in text)  # not written before
    for name in needed:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file, expected a whole export")
    weights = folder / MODEL_FILE
    try:
        with safetensors.safe_open(weights, "np"):
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{weights}: not a whole file of weights ({error})") from error
    repo_id = _checked_name(folder, repo_id)
    check_card(folder / "README.md", repo_id)
    paths = (path for path in folder.rglob("*") if path.is_file())
    named = ((path.relative_to(folder).as_posix(), path) for path in paths)
    files = sorted(
        (name, path.stat().st_size) for name, path in named if not _hidden(name)
    )
    return Plan(folder, repo_id, private, files)


def push(plan, message="Upload model"):
    """Create the repository where there is none, and upload.

    Files of an earlier export which this one does not have, such as a cohort, are
    removed from the repository; its history keeps them.

    Arguments
    ---------
    plan : Plan
    message : str
        Of the commit.

    Returns
    -------
    str
        The address of the commit.

    Raises
    ------
    InputError
        One line that says what the hub refused, or that it cannot be reached.
    """
    if get_token() is None:
        raise InputError(f"{plan.repo_id}: no token of the hub; {LOG_IN}")
    sent = [name for name, _ in plan.files]
    try:
        api = HfApi()
        api.create_repo(plan.repo_id, private=plan.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=plan.repo_id,
            folder_path=plan.folder,
            allow_patterns=[glob.escape(name) for name in sent],
            delete_patterns=[name for name in FILES if name not in sent],
            commit_message=message,
        )
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{plan.repo_id}: not sent: {_reason(error)}") from error
    return commit.commit_url


def _reason(error):
    """What huggingface_hub says of a failure, in one line."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    where, words = constants.ENDPOINT, str(error).strip() or type(error).__name__
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        words = error.server_message or words.split("\n")[0]
        return f"{where} answers {status}: {words}" + f"; {LOG_IN}" * (status == 401)
    words = words.split("\n")[0]
    if isinstance(error, (HTTPError, ConnectionError, TimeoutError)):
        return f"{where} cannot be reached ({words})"
    return words


def _checked_name(folder, repo_id):
    repo_id = repo_id or read_training(folder).get("name")
    if repo_id is None:
        raise InputError(f"{folder}: no name on the hub, expected --name owner/name")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"--name {repo_id}: {error}") from error
    if repo_id.count("/") != 1:
        raise InputError(f"--name {repo_id}: expected owner/name")
    return repo_id


def _hidden(name):
    """.git, .cache, files half written: of no use to anybody else."""
    return any(part.startswith(".") for part in name.split("/"))
