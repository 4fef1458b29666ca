"""mkdocs hooks: pages may link to files of the repository outside docs/, by the same relative links as on a code host.

The linked files become part of the site: `docs/x` is served as `x`, any other file under its path in the repository.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
TOP_PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "infra/README.md")
FOLDERS = ("infra/results", "infra/ray", "infra/spark", "infra/dataflow", "infra/start")
SUFFIXES = {".md", ".json", ".jsonl", ".png"}
_LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the top of the repository, the raw results and the notes beside the code."""
    paths = [ROOT / name for name in TOP_PAGES]
    for folder in FOLDERS:
        paths += [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES]
    for path in paths:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite relative links from paths in the repository to paths in the site."""
    outside = page.file.src_uri.startswith(("infra/", *TOP_PAGES))
    source = page.file.src_uri if outside else f"docs/{page.file.src_uri}"

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        target = "index.md" if target == "README.md" else target.removeprefix("docs/")
        return match[1] + posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(moved, markdown)
