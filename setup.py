"""What pyproject.toml cannot say: the README as an index page shows it, and the project's URLs.

An index shows the README without the files beside it, so relative links and pictures lead nowhere there.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent
# [text](target) and ![text](target), where the target is neither a URL nor an anchor.
RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#|//)([^)\s]+)\)")


def page(readme: str, repository: str) -> str:
    """The README for an index page.

    Args:
        readme: Markdown with links relative to the repository's root.
        repository: The repository's address on the web; where it is empty, relative links become their text and
            relative pictures are left out.
    """

    def link(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        if repository:
            return f"{picture}[{text}]({repository}/{'raw' if picture else 'blob'}/main/{target})"
        return "" if picture else text

    return RELATIVE.sub(link, readme)


def urls(repository: str) -> dict[str, str]:
    """Name → address, for the index page's side bar."""
    if not repository:
        return {}
    pages = {"Documentation": "tree/main/docs", "Changelog": "blob/main/CHANGELOG.md", "Issues": "issues"}
    return {"Source": repository} | {name: f"{repository}/{place}" for name, place in pages.items()}


if __name__ == "__main__":
    from setuptools import setup

    home = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["trtprune"]["repository"]
    setup(
        long_description=page((ROOT / "README.md").read_text(encoding="utf-8"), home.rstrip("/")),
        long_description_content_type="text/markdown",
        project_urls=urls(home.rstrip("/")),
    )
