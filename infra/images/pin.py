"""Look up the digests of the base images, and write them into the Dockerfile.

    python -m infra.images.pin

Each image from elsewhere is `FROM NAME:TAG${X_DIGEST}`, and `ARG X_DIGEST=` is empty until this command has asked the
image's registry: an image is built from the tag then, and from exactly these bytes afterwards. Run it again to follow
a tag.
"""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from clara.config.flags import plain_parser
from clara.errors import InputError, command_line
from clara.own_wheel import source_tree

IMAGE = re.compile(r"^FROM (?P<name>\S+?):(?P<tag>[\w.-]+)\$\{(?P<argument>\w+_DIGEST)\} AS \w+$", re.MULTILINE)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DEFAULT = "registry-1.docker.io"
_TYPES = ", ".join(
    [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ]
)
_SECONDS = 30.0


def place(name: str) -> tuple[str, str]:
    """Address of an image's registry, and the repository there; as docker reads a name."""
    host, slash, repository = name.partition("/")
    if not slash or not ("." in host or ":" in host):
        host, repository = _DEFAULT, name if slash else f"library/{name}"
    scheme = "http" if host.startswith(("127.", "localhost:")) else "https"
    return f"{scheme}://{host}", repository


def _token(challenge: str) -> str:
    """An anonymous token, as a registry's answer 401 asks for.

    Args:
        challenge: its header WWW-Authenticate.
    """
    given = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = urllib.parse.urlencode({key: given[key] for key in ("service", "scope") if key in given})
    with urllib.request.urlopen(f"{given['realm']}?{query}", timeout=_SECONDS) as reply:
        found = json.load(reply)
    return str(found.get("token") or found["access_token"])


def digest_of(name: str, tag: str) -> str:
    """The digest that a tag has now, of the index of all platforms where there is one.

    Raises:
        InputError: the registry does not answer, does not know the image, or says no digest.
    """
    address, repository = place(name)
    request = urllib.request.Request(
        f"{address}/v2/{repository}/manifests/{tag}", method="HEAD", headers={"Accept": _TYPES}
    )
    try:
        try:
            reply = urllib.request.urlopen(request, timeout=_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
            request.add_header("Authorization", f"Bearer {_token(error.headers.get('WWW-Authenticate', ''))}")
            reply = urllib.request.urlopen(request, timeout=_SECONDS)
        with reply:
            found = reply.headers.get("Docker-Content-Digest", "")
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{name}:{tag}: {address} gives no digest ({error}); run where that registry answers"
        ) from error
    if not DIGEST.fullmatch(found):
        raise InputError(f"{name}:{tag}: {address} says digest {found!r}, expected sha256 and 64 hex digits")
    return str(found)


def pinned(dockerfile: str) -> str:
    """The text of a Dockerfile with the digest of each image from elsewhere.

    Raises:
        InputError: see `digest_of`; or an image's argument is not declared.
    """
    for image in IMAGE.finditer(dockerfile):
        argument = image["argument"]
        value = digest_of(image["name"], image["tag"])
        dockerfile, count = re.subn(rf"^ARG {argument}=.*$", f"ARG {argument}=@{value}", dockerfile, flags=re.MULTILINE)
        if count != 1:
            raise InputError(f"Dockerfile: ARG {argument} is there {count} times, expected once")
    return dockerfile


def main(argv: Sequence[str]) -> int:
    """The command line."""
    parse = plain_parser("infra.images.pin", __doc__)
    parse.add_argument(
        "--dockerfile", type=Path, metavar="FILE", help="the file to change (default: the checkout's Dockerfile)"
    )
    file = parse.parse_args(argv).dockerfile or source_tree() / "Dockerfile"
    text = pinned(file.read_text(encoding="utf-8"))
    file.write_text(text, encoding="utf-8")
    print("\n".join(re.findall(r"^ARG \w+_DIGEST=.*$", text, re.MULTILINE)))
    return 0


if __name__ == "__main__":
    command_line(main)
