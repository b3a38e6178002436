"""Upload a published folder to the Hugging Face Hub. `limner publish --push` is the only way that anything is uploaded.

The token is the one of `HF_TOKEN` or of the hub's own login; Limner neither stores nor prints it.
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars

from limner_extensions.publishing import model_card
from trainer.base_models import hub
from trainer.base_models.hub_download import FAILURES
from trainer.errors import UserError

REFUSED = (401, 403, 404)


@dataclass(frozen=True)
class Uploaded:
    """Address of the repository; `kept_card` tells whether it had a model card, which was left as it is."""

    url: str
    kept_card: bool


def push(folder: Path, repository: str, *, public: bool) -> Uploaded:
    """Upload a folder to a repository, which is created, private unless `public`, if it does not exist.

    Raises:
        UserError: the name is invalid, nobody is logged in, or the hub refuses the upload or does not answer.
    """
    match = hub.NAME.fullmatch(repository)
    if not match or match[2]:
        raise UserError("{base!r} is not a name on the Hugging Face Hub.", "Give owner/name.", base=repository[:100])
    disable_progress_bars()
    api = HfApi(token=True)  # required: an anonymous request would only be refused later
    try:
        url = api.create_repo(repository, private=not public, exist_ok=True)
        kept_card = api.file_exists(repository, model_card.NAME)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"Upload {folder.name}",
            ignore_patterns=[model_card.NAME] if kept_card else None,
        )
    except LocalTokenNotFoundError:
        raise UserError(
            "You are not logged in to the Hugging Face Hub.", "Log in with: hf auth login, or set HF_TOKEN."
        ) from None
    except FAILURES as error:
        raise _explain(repository, error) from None
    return Uploaded(str(url), kept_card)


def _explain(repository: str, error: Exception) -> UserError:
    response = error.response if isinstance(error, HfHubHTTPError) else None
    if response is not None and response.status_code in REFUSED:
        return UserError(
            "The Hugging Face Hub refused the upload to {repository}.",
            "Check the owner's name, and that your token may write: huggingface.co/settings/tokens.",
            repository=repository,
        )
    return UserError(
        "{repository} could not be uploaded: the Hugging Face Hub did not answer.",
        "Check the connection and try again: what is there already is not uploaded twice.",
        repository=repository,
    )
