"""A page as its tags and text, and text that would do harm in one."""

from html.parser import HTMLParser

HOSTILE = "</td><script src=//evil.example>x</script><img onerror=a| `b` [l](http://evil.example) \x1b[31m\n{{ 7*7 }}"


class Page(HTMLParser):
    """Collects tags, attributes and text; notes tags that are closed in another order than opened."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.misnested: list[str] = []
        self.feed(html)
        self.misnested += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.misnested.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data
