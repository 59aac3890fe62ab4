"""Connections to S3, Google Cloud Storage and Azure, from the usual environment variables.

obstore is imported on first use, because it is an optional dependency.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from datetime import timedelta
from typing import Any

SCHEMES = ("s3", "gs", "az")


def obstore() -> Any:
    """Return the module that sends requests."""
    return importlib.import_module("obstore")


def exceptions() -> Any:
    """Return the module with the errors of `obstore`."""
    return importlib.import_module("obstore.exceptions")


def is_installed() -> bool:
    """Return whether obstore is installed."""
    return importlib.util.find_spec("obstore") is not None


def settings() -> dict[str, str]:
    """Return the environment variables with the stores' addresses and the user's credentials."""
    prefixes = ("AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR_HOST")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def connect(scheme: str, name: str, is_patient: bool) -> Any:
    """Return a client of one bucket.

    Args:
        scheme: One of `SCHEMES`.
        name: The name of the bucket.
        is_patient: Whether a request may take long. A server that has never answered
            gets less time, so that a wrong address is reported soon.
    """
    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=5 if is_patient else 3),
        "read_timeout": timedelta(seconds=60 if is_patient else 5),
        "timeout": timedelta(minutes=30),
    }
    retries: dict[str, Any] = {
        "max_retries": 2,
        "retry_timeout": timedelta(seconds=20 if is_patient else 5),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }
    make = {"s3": _s3, "gs": _google, "az": _azure}[scheme]
    return make(name, client_options=options, retry_config=retries)


def _s3(name: str, client_options: dict[str, Any], **more: Any) -> Any:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    client_options["allow_http"] = endpoint.startswith("http://")
    has_key = any(name in os.environ for name in ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"))
    if not has_key and importlib.util.find_spec("boto3") is not None:
        # boto3 knows profiles and SSO. If it finds no credentials, obstore looks for them.
        with contextlib.suppress(Exception):
            more["credential_provider"] = importlib.import_module(
                "obstore.auth.boto3"
            ).Boto3CredentialProvider()
    return _stores().S3Store(name, client_options=client_options, **more)


def _google(name: str, client_options: dict[str, Any], **more: Any) -> Any:
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        emulator = emulator if "://" in emulator else f"http://{emulator}"
        more["base_url"] = emulator.rstrip("/")
        # An emulator takes any token. Without a token, obstore asks Google's metadata server.
        more["credential_provider"] = lambda: {"token": "anonymous", "expires_at": None}
    base = emulator or os.environ.get("GOOGLE_BASE_URL", "")
    client_options["allow_http"] = base.startswith("http://")
    return _stores().GCSStore(name, client_options=client_options, **more)


# The parts of Azure's connection strings, and the arguments of obstore for them.
_AZURE_PARTS = {
    "AccountName": "account_name",
    "AccountKey": "account_key",
    "BlobEndpoint": "endpoint",
    "SharedAccessSignature": "sas_key",
}


def _azure(name: str, client_options: dict[str, Any], **more: Any) -> Any:
    text = os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
    parts = dict(part.split("=", 1) for part in (text or "").split(";") if "=" in part)
    more |= {argument: parts[key] for key, argument in _AZURE_PARTS.items() if key in parts}
    endpoint = parts.get("BlobEndpoint") or os.environ.get("AZURE_STORAGE_ENDPOINT", "")
    is_emulator = bool(os.environ.get("AZURE_STORAGE_USE_EMULATOR"))
    client_options["allow_http"] = endpoint.startswith("http://") or is_emulator
    return _stores().AzureStore(name, client_options=client_options, **more)


def _stores() -> Any:
    return importlib.import_module("obstore.store")
