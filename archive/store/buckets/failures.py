"""Find out what an error of obstore means, and describe it in one line.

Only the text of such an error shows what the server answered. These texts have up to
1,400 characters.
"""

from __future__ import annotations

import re

from ...errors import StorageError


class ChangedError(Exception):
    """An object has changed since it was read."""


class ConflictError(Exception):
    """The store refused a request that it may accept a moment later."""


class UnreachableError(StorageError):
    """The store does not answer, or failed for a reason that may pass."""


class UnreadableKeyError(StorageError):
    """The key of an object cannot be part of a path."""


def is_missing_bucket(error: Exception) -> bool:
    """Return whether an error means that the bucket itself does not exist."""
    return bool(re.search("NoSuchBucket|ContainerNotFound|bucket does not exist", str(error)))


def is_temporary(error: Exception) -> bool:
    """Return whether the same request may succeed after this error."""
    if isinstance(error, ConflictError):
        return True
    text = str(error).split("\n\nDebug")[0]
    status = r"HTTP error|InternalError|SlowDown|status code: (50[02-9]|5[1-9]\d|429|408)"
    return bool(re.search(status, text))


def reason(error: Exception) -> str:
    """Return what went wrong, in one line of at most 300 characters."""
    first, _, debug = str(error).partition("\n\nDebug source")
    where = re.search(r"https?://[^/\s]+", first)
    server = where[0] if where else "the server"
    if "HTTP error" in first:
        if "kind: Connect" in debug:
            return f"nobody answers at {server}"
        if "kind: Timeout" in debug:
            return f"{server} accepted the connection and did not answer"
    status = re.search(r"status code: (\d+ [A-Za-z ]+)", first)
    if status:
        tags = ("Code", "Message")
        details = [re.search(rf"<{tag}>\s*([^<]+?)\s*</{tag}>", first) for tag in tags]
        said = ": ".join(found[1] for found in details if found)
        first = f"{server} said {status[1].strip()}{f' ({said})' if said else ''}"
    line = " ".join(first.split()).rstrip(".")
    return line if len(line) <= 300 else f"{line[:299]}…"


# The environment variables that hold a user's credentials, by scheme.
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


def advice(error: Exception, scheme: str) -> str:
    """Return what the user can do about an error. The text begins with a space, or is empty."""
    text = str(error)
    if "169.254.169.254" in text or "Account must be" in text or "metadata.google" in text:
        return f" No credentials were found. Set {_CREDENTIALS[scheme]}."
    if re.search(r"status code: 40[13]", text):
        return " Check the credentials, and what they permit: list, get, put and delete."
    return ""
