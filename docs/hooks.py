"""What MkDocs runs when it builds the documentation: pages and files from outside docs/, and a check that the site works offline.

Pages are read in the repository, too. So they link as files of the repository do, and these functions translate: a link
out of docs/ leads to the page that is made of that file, or else to a copy of the file.
"""

import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "findings/README.md": "findings.md",
}
"""The pages that are made of files outside docs/."""

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\|.*$", re.MULTILINE)
_CODE = re.compile(r"`[^`]*`")
"""Code in a table. There, the repository's view needs a backslash before a `|`, and Python's Markdown would show it."""
_LOADED = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*?\ssrc=["']?(?:https?:)?//[^\s"'>]+|"""
                     r"""<link\b(?![^>]*rel=["']?canonical)[^>]*?\shref=["']?(?:https?:)?//[^\s"'>]+|"""
                     r"""@import\s+(?:url\()?["']?(?:https?:)?//[^\s"')]+|url\(["']?(?:https?:)?//[^\s"')]+""")  # fmt: skip
"""What makes a browser load something from another place than the site."""

log = logging.getLogger("mkdocs.hooks.site")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of files outside docs/, and the files there that pages link to."""
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text(encoding="utf-8")))
    copied = {path for page in files.documentation_pages() for path in _outside(page.src_uri, page.content_string)}
    for path in sorted(copied):
        files.append(File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Translate the links of a page."""
    return translated(page.file.src_uri, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Warn, which fails a strict build, of everything that the site would load from elsewhere."""
    for file in sorted(Path(config.site_dir).rglob("*")):
        if file.suffix in (".html", ".css"):
            for found in loaded_from_elsewhere(file.read_text(encoding="utf-8")):
                log.warning("%s is loaded from elsewhere: %s", file.relative_to(config.site_dir), found)


def translated(uri: str, markdown: str) -> str:
    """Return the text of a page with the links of the site in place of those of the repository."""
    parts: list[str] = []
    end = 0
    for fence in _FENCE.finditer(markdown):  # code has no links
        parts += [_with_links(uri, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _with_links(uri, markdown[end:])])


def _with_links(uri: str, text: str) -> str:
    def link(match: re.Match[str]) -> str:
        target = posixpath.relpath(_target(_path(uri, match["path"])), posixpath.dirname(uri) or ".")
        return target + (match["anchor"] or "")

    return _ROW.sub(lambda row: _CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), _LINK.sub(link, text))


def _outside(uri: str, markdown: str) -> Iterator[str]:
    """Yield the paths of the files outside docs/ that a page links to, without those that become pages."""
    for match in _LINK.finditer(_FENCE.sub("", markdown)):
        path = _path(uri, match["path"])
        if _target(path).startswith("repository/") and (ROOT / path).is_file():
            yield path


def _path(uri: str, link: str) -> str:
    """Return the path in the repository of what a page links to. A folder is its README, as in the repository's own view."""
    source = next((source for source, page in PAGES.items() if page == uri), f"docs/{uri}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return f"{path}/README.md" if (ROOT / path / "README.md").is_file() and path != "." else path


def _target(path: str) -> str:
    """Return where a file of the repository is in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path, f"repository/{path}")


def loaded_from_elsewhere(text: str) -> list[str]:
    """Return what a page or a style sheet makes a browser load from another place than the site."""
    return [match[0] for match in _LOADED.finditer(text)]
