"""The process behind ``hf:`` sources: fetches one file, says its size, ends.

Run as a file, not as a module of slotd, which it does not import. Arguments:
repository, file, revision ("" for the default), folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["REASONS", "SIZE_WORD", "main"]

SIZE_WORD = "slotd-hf-size"
REFUSED, NOT_FOUND, FAILED = 3, 4, 1
REASONS = {REFUSED: "refused", NOT_FOUND: "not_found", FAILED: "tool_failed"}


def main(argv: Sequence[str]) -> int:
    import huggingface_hub as hub
    from huggingface_hub import errors

    repo, file, revision, folder = argv
    try:
        url = hub.hf_hub_url(repo, file, revision=revision or None)
        size = hub.get_hf_file_metadata(url).size
        if size:
            sys.stdout.write(f"{SIZE_WORD} {size}\n")
            sys.stdout.flush()
        hub.hf_hub_download(repo, file, revision=revision or None, local_dir=folder)
    except errors.GatedRepoError as error:
        return _say(f"{_first_line(error)} (accept its terms on the site and set HF_TOKEN)", REFUSED)
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
        return _say(f"{_first_line(error)} (a private repository needs HF_TOKEN)", NOT_FOUND)
    except Exception as error:  # a process of one task: whatever went wrong is its last word
        return _say(f"{type(error).__name__}: {_first_line(error)}", FAILED)
    return 0


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])


def _say(words: str, status: int) -> int:
    sys.stderr.write(words + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
