"""Text of any script in matplotlib's figures.

matplotlib draws a character that its font lacks as a box, unless another font was named beside it. Styles and programs name
fonts of their own (seaborn's themes, `SimHei` in programs of others), which are not here, so the font with everybody's
characters is put behind whatever was asked for, and not into a setting that they replace.
"""

from matplotlib import font_manager

FALLBACK = ("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Noto Sans CJK JP", "Droid Sans Fallback")
"""The first of these that is there is used."""


def install() -> None:
    """From now on text falls back. Without such a font, or with a matplotlib that draws a text with one font only, nothing changes."""
    find = getattr(font_manager.FontManager, "_find_fonts_by_props", None)
    if find is None:
        return

    def found(self, *args, **options):
        paths = find(self, *args, **options)
        known = {font.name: font.fname for font in reversed(self.ttflist)}
        more = next((known[name] for name in FALLBACK if name in known), None)
        return paths if more is None or more in paths else [*paths, more]

    font_manager.FontManager._find_fonts_by_props = found
