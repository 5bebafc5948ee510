"""A repository on the hub: who may write to it, what it holds, and sending files to it."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dialogkit.errors import (
    ConfigError,
    DialogKitError,
    InterruptedRunError,
    ModelError,
    StorageError,
    UnavailableError,
    os_reason,
)
from dialogkit.hints import Call, Change, Either, Hint, Shell
from dialogkit.services.exporting.hub_files import Upload, digest, left_of_another_model
from dialogkit.system.hub_upload import Refusal, hub_token, refusal, uploading
from dialogkit.system.network import hub_forbidden, hub_url, plain_url, problems
from dialogkit.text import counted, listed

ONE_BY_ONE = 2**20
"""Bytes from which a file is sent by itself, so that it need not be sent again if a later one fails."""
_LOG_IN = Either(Shell("hf auth login"), "set the environment variable HF_TOKEN")


class Sent(NamedTuple):
    """What was done.

    Attributes:
        url: its address.
        commit: the commit that holds the model; None if the repository held all of it.
        is_private: whether only its owner sees it.
        committed: the files that differed.
        bytes: bytes of files that were sent.
        removed: files of an earlier model that were removed.
    """

    url: str
    commit: str | None
    is_private: bool
    committed: list[str]
    bytes: int
    removed: list[str]


class PushRequest(NamedTuple):
    """What is asked of the hub.

    Attributes:
        repository: the name, with that of its owner.
        upload: what goes there.
        message: that of the commit.
        is_public: whether everybody is to see it.
        force: whether other files there may be replaced.
        again: the call that continues after a failure.
    """

    repository: str
    upload: Upload
    message: str
    is_public: bool
    force: bool
    again: Call


def address_of(repository: str) -> str:
    """Return the address of a repository."""
    return f"{plain_url(hub_url())}/{repository}"


def require_name(repository: str, again: Callable[[str], Hint]) -> None:
    """Raise ConfigError if a repository cannot have this name; `again` makes the hint of one that it can have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    bare = repository.removeprefix(f"{plain_url(hub_url())}/").removeprefix("https://huggingface.co/")
    try:
        validate_repo_id(bare)
        problem = "" if bare == repository else "which is an address"
    except HFValidationError:
        problem = "and the name of a repository is user/name or name, of letters, digits, '-', '_' and '.'"
    if problem:
        kept = ["".join(c if c.isascii() and c.isalnum() else "-" for c in part) for part in bare.split("/")[-2:]]
        better = "/".join(filter(None, ("-".join(filter(None, part.split("-")))[:96] for part in kept)))
        better = bare if problem.endswith("address") else better or "my-model"
        raise ConfigError(f"the repository is {repository!r}, {problem}", hint=again(better))


def require_hub() -> str:
    """Return the token of the hub. Raises: UnavailableError if the hub may not be asked, or cannot be."""
    if hub_forbidden():
        named = next(n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(n))
        raise UnavailableError(f"{named} forbids asking the hub", hint=Shell(f"unset {named}"))
    if (problem := problems([hub_url()])[0]) is not None:
        raise UnavailableError(f"the hub at {plain_url(hub_url())} {problem}", hint=Call("doctor", network=True))
    if (token := hub_token()) is None:
        raise UnavailableError("the hub needs a token, and there is none on this machine", hint=_LOG_IN)
    return token


def account_of(token: str, again: Call) -> str:
    """Return the name of the account that a token belongs to. Raises: UnavailableError."""
    from huggingface_hub import HfApi

    with uploading(lambda sent: None), _refusals("", again, "", token):
        return str(HfApi(endpoint=hub_url(), token=token).whoami()["name"])


def send(request: PushRequest, token: str, account: str, on_progress: Callable[[str, float], None]) -> Sent:
    """Create the repository if there is none, and send to it what it lacks.

    Args:
        request: what goes where.
        token: the token of the hub.
        account: the account that it belongs to.
        on_progress: receives the current activity and the fraction that is done.

    Raises: UnavailableError; ConfigError and StorageError if the repository is not as it should be;
    InterruptedRunError after Ctrl-C. What was sent by then stays on the hub.
    """
    from huggingface_hub import HfApi

    total = sum(file.bytes for file in request.upload.listed()) or 1
    activity = "asking the hub"
    with uploading(lambda sent: on_progress(activity, min(1.0, sent / total))) as requests:
        api = HfApi(endpoint=hub_url(), token=token)
        on_progress(activity, 0.0)
        with _refusals(request.repository, request.again, account, token):
            there, parent, is_private = _open(api, request)
            changed = _changed(request, there)
            removed = left_of_another_model(list(there), [*request.upload.files, *request.upload.texts])
            if (others := [name for name in changed if name in there] + removed) and not request.force:
                raise StorageError(
                    f"{request.repository!r} holds other files of these names or another model: {listed(others)}",
                    hint=Change({"force": True}),
                )

            def say(text: str) -> None:
                nonlocal activity
                activity = text
                on_progress(activity, min(1.0, requests.sent / total))

            commit = None
            if changed or removed:
                _send_large(api, request, changed, lambda: requests.sent, say)
                commit = _commit(api, request, changed, removed, parent, say)
    return Sent(address_of(request.repository), commit, is_private, changed, requests.sent, removed)


def _open(api: Any, request: PushRequest) -> tuple[dict[str, Any], str | None, bool]:
    """Return the files of the repository, its last commit, and whether it is private; create it if there is none.

    Raises: ConfigError if everybody sees it, and nobody asked for that.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    repository = request.repository
    try:
        info = api.model_info(repository, files_metadata=True)
    except RepositoryNotFoundError:
        # Not `exist_ok`: what another process made meanwhile may be public.
        api.create_repo(repository, private=not request.is_public, repo_type="model")
        return {}, None, not request.is_public
    if not info.private and not request.is_public:
        raise ConfigError(
            f"{repository!r} is public: everybody could read what is sent there", hint=Change({"public": True})
        )
    return {file.rfilename: file for file in info.siblings or ()}, info.sha, bool(info.private)


def _changed(request: PushRequest, there: Mapping[str, Any]) -> list[str]:
    """Return the files that the repository lacks or holds in another version."""
    contents: dict[str, Path | bytes] = {name: text.encode() for name, text in request.upload.texts.items()}
    contents |= request.upload.files
    return sorted(name for name, content in contents.items() if not _is_same(there.get(name), content))


def _is_same(file: Any, content: Path | bytes) -> bool:
    if file is None:
        return False
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    if file.size not in (None, size):
        return False
    known = file.blob_id if file.lfs is None else file.lfs["sha256"]
    return bool(known == digest(content, large=file.lfs is not None))


def _additions(request: PushRequest, names: Sequence[str]) -> list[Any]:
    """Return what adds files to the repository, as the hub's library takes it."""
    from huggingface_hub import CommitOperationAdd

    files, texts = request.upload.files, request.upload.texts
    contents = {name: str(files[name]) if name in files else texts[name].encode() for name in names}
    return [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()]


def _send_large(
    api: Any, request: PushRequest, names: Sequence[str], sent: Callable[[], int], say: Callable[[str], None]
) -> None:
    """Send the large ones among some files one by one: each that is there whole stays there without a commit."""
    for addition in _additions(request, names):
        if addition.upload_info.size >= ONE_BY_ONE:
            say(f"sending {addition.path_in_repo}")
            before = sent()
            api.preupload_lfs_files(request.repository, [addition])
            if sent() == before:
                say(f"{addition.path_in_repo} is on the hub already")


def _commit(
    api: Any,
    request: PushRequest,
    changed: Sequence[str],
    removed: Sequence[str],
    parent: str | None,
    say: Callable[[str], None],
) -> str:
    """Add and remove files in one commit, and return it."""
    from huggingface_hub import CommitOperationDelete

    say(f"committing {counted(len(changed) + len(removed), 'file')}")
    done = api.create_commit(
        request.repository,
        [*(CommitOperationDelete(path_in_repo=name) for name in removed), *_additions(request, changed)],
        commit_message=request.message,
        parent_commit=parent,
        num_threads=1,
    )
    return str(done.oid)


@contextmanager
def _refusals(repository: str, again: Call, account: str, token: str) -> Iterator[None]:
    """Turn the errors of the hub's library into one sentence each, with what to do."""
    try:
        yield
    except DialogKitError:
        raise
    except KeyboardInterrupt:
        message = "stopped by Ctrl-C; the files that were sent whole need not be sent again"
        raise InterruptedRunError(message, exit_code=130, hint=again) from None
    except Exception as error:
        refused = refusal(error)
        if refused is None and isinstance(error, ValueError) and "metadata" in str(error).lower():
            problem = " ".join(str(error).split())
            raise ModelError(f"the hub refuses the card: {problem}", hint="correct README.md") from None
        if refused is None and isinstance(error, OSError) and error.filename:
            raise ModelError(f"{str(error.filename)!r} cannot be read: {os_reason(error)}") from None
        if refused is None:
            raise
        raise _unavailable(refused, repository, again, account, token) from None


def _unavailable(refused: Refusal, repository: str, again: Call, account: str, token: str) -> UnavailableError:
    """Return what the hub refused as a sentence."""
    message = f": {refused.message}" if refused.message else ""
    if refused.status == 401:
        from_environment = token in (os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN"))
        source = "in the environment variable HF_TOKEN" if from_environment else "that is kept on this machine"
        advice: Hint = "set HF_TOKEN to a token that may write" if from_environment else Shell("hf auth login")
        return UnavailableError(f"the hub does not know the token {source}", hint=advice)
    if refused.status == 403:
        owner, _, name = repository.rpartition("/")
        other = Call("push", *again.arguments[:1], f"{account}/{name}", **again.options)
        may_write = "use a token that may write, from https://huggingface.co/settings/tokens"
        return UnavailableError(
            f"the token of {account!r} may not write to {repository!r}{message}",
            hint=Either(may_write, *([] if owner == account else [other])),
        )
    if refused.status in (409, 412):
        return UnavailableError(f"{repository!r} was changed meanwhile{message}", hint=again)
    return UnavailableError(f"{refused.sentence}{message}", hint=again)
