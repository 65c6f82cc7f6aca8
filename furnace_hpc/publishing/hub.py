"""Upload a published folder to a hub, with the user's token."""

import re
import sys
from pathlib import Path

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.text_safety import masked

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def check_push(repo: str) -> str:
    """Return the user's token, before anything is computed.

    Raises:
        ConfigError: the name is not OWNER/NAME, or there is no token.
    """
    from huggingface_hub import get_token

    if not REPO.fullmatch(repo):
        raise ConfigError(f"--push {repo!r} is not a repository. Give OWNER/NAME")
    token = get_token()
    if not token:
        raise ConfigError(
            "--push needs a token of the hub, and there is none. Run `hf auth login`, or set "
            "HF_TOKEN to a token that may write"
        )
    return token


def push(folder: Path, repo: str, token: str, is_public: bool) -> str:
    """Create the repository if it is missing, and upload the folder in one commit. Return its URL.

    Raises:
        ConfigError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not sys.stderr.isatty():
        disable_progress_bars()
    # The client uses httpx, or httpx2 in newer versions. Its errors have a base class there.
    connection_errors: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], OSError)
    api = HfApi(token=token)
    later = f"The folder is complete. Upload it later: hf upload {repo} {folder}"
    try:
        url = api.create_repo(repo, private=not is_public, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Publish with Furnace")
    except HfHubHTTPError as error:
        raise ConfigError(_refused(error, repo, later)) from None
    except connection_errors as error:
        raise ConfigError(
            f"the hub {api.endpoint} cannot be reached ({_one_line(error)}). {later}"
        ) from None
    except ValueError as error:  # the hub's answer on the card or on an upload
        raise ConfigError(f"the hub refuses the folder ({_one_line(error)})") from None
    return str(url)


def _refused(error: Exception, repo: str, later: str) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        return (
            f"the hub refuses to write to {repo} (status {status}). Check with `hf auth whoami` "
            f"that your token may write there. {later}"
        )
    return f"the hub answers with an error ({_one_line(error)}). {later}"


def _one_line(error: BaseException) -> str:
    return masked(" ".join(str(error).split()))[:200]
