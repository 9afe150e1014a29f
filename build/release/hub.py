"""A staged variant to a repository of the Hugging Face hub, whose layout it has already."""

from __future__ import annotations

import re
from pathlib import Path

from engines.errors import UserError

SCHEME = "hf://"


def upload_to_hub(folder: Path, address: str, variant: str) -> str:
    """Uploads to `hf://OWNER/NAME[@REVISION]`, made where it does not exist; returns the commit's address.

    The hub's own client uploads in parallel, resumes, and sends nothing that the hub has.
    """
    from httpx2 import TransportError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", address)
    if found is None:
        raise UserError(f"{address}: expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    repo, revision = found[1], found[2]
    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message=f"Publish {variant}"
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, TransportError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{address}: {reason}; is it yours, and is `hf auth login` done?") from None
    return str(commit.commit_url)
