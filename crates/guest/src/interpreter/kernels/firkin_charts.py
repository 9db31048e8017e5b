"""What a matplotlib figure shows, as data: so that a client can draw it again in its own way.

A figure with one pair of axes becomes one chart, with several a `superchart`. Axes that mix kinds are `unknown`: a picture
says more than half of the data. Box plots are noted when they are drawn, because afterwards only their lines are left.
"""

import re

import matplotlib
from firkin_values import plain
from matplotlib import axes, category, collections, container, dates, lines, patches, text

BOXES = "_drawn_boxes"
"""The attribute of axes that holds what was given to `bxp`."""

UNIT = re.compile(r"\s\(([^()]*)\)|\[([^\[\]]*)\]")
"""`Time (s)`, `Time [s]`."""

ANGLE_DIGITS = 3
"""matplotlib keeps angles in single precision."""


def install() -> None:
    """From now on axes remember the statistics of their box plots."""
    draw = axes.Axes.bxp

    def bxp(self, bxpstats, *args, **options):
        stats = list(bxpstats)
        positional = args[2] if len(args) > 2 else None
        upright = options.get("vert", positional)
        if options.get("orientation") == "horizontal":
            upright = False
        noted = getattr(self, BOXES, [])
        setattr(self, BOXES, noted + [(stat, upright in (None, True)) for stat in stats])
        return draw(self, stats, *args, **options)

    axes.Axes.bxp = bxp


def chart_of(figure) -> dict | None:
    """The chart of a figure; none if nothing is drawn in it."""
    drawn = figure.get_axes()
    if not any(one.has_data() for one in drawn):
        return None
    if len(drawn) == 1:
        return plain(chart_of_axes(drawn[0]))
    title = figure._suptitle.get_text() if figure._suptitle else None
    return plain({"type": "superchart", "title": title or None, "elements": [chart_of_axes(one) for one in drawn]})


def chart_of_axes(ax) -> dict:
    title = ax.get_title() or None
    if getattr(ax, BOXES, None):
        return boxes(ax, title)
    shown = [child for child in ax._children if not isinstance(child, text.Text) and not is_guide(child, ax)]
    bars = [one for one in ax.containers if isinstance(one, container.BarContainer)]

    def all_are(kind):
        return bool(shown) and all(isinstance(child, kind) for child in shown)

    if bars and all_are(patches.Rectangle):
        return bar(ax, title, bars)
    if all_are(patches.Wedge):
        return pie(shown, title)
    if all_are(lines.Line2D):
        return points("line", ax, title, [(line.get_label(), line.get_xdata(), line.get_ydata()) for line in shown])
    if all_are(collections.PathCollection):
        offsets = [(one.get_label(), one.get_offsets()) for one in shown]
        return points("scatter", ax, title, [(label, place[:, 0], place[:, 1]) for label, place in offsets])
    return {"type": "unknown", "title": title, "elements": []}


def is_guide(child, ax) -> bool:
    """Whether it is a line across the axes (`axhline`), which is no data."""
    return isinstance(child, lines.Line2D) and not child.get_transform().contains_branch(ax.transData) or (
        isinstance(child, lines.Line2D) and child.get_transform() in (ax.get_xaxis_transform(), ax.get_yaxis_transform())
    )


def labels(ax, swapped: bool = False) -> dict:
    x, y = ax.get_xlabel() or None, ax.get_ylabel() or None
    if swapped:
        x, y = y, x
    return {"x_label": x, "y_label": y, "x_unit": unit(x), "y_unit": unit(y)}


def unit(label: str | None) -> str | None:
    found = UNIT.search(label or "")
    return (found.group(1) or found.group(2)) if found else None


def named(label, kind: str, number: int) -> str:
    """matplotlib names what has no name with an underscore."""
    return f"{kind} {number}" if label is None or str(label).startswith("_") else str(label)


def points(kind: str, ax, title, series) -> dict:
    chart = {"type": kind, "title": title, **labels(ax), **axis("x", ax.xaxis), **axis("y", ax.yaxis)}
    as_x, as_y = reader(ax.xaxis, kind), reader(ax.yaxis, kind)
    word = {"line": "Line", "scatter": "Scatter"}[kind]
    chart["elements"] = [
        {"label": named(label, word, number), "points": [(as_x(x), as_y(y)) for x, y in zip(xs, ys)]}
        for number, (label, xs, ys) in enumerate(series)
    ]
    return chart


def converter(one):
    return one.get_converter() if hasattr(one, "get_converter") else one.converter


def is_date(one) -> bool:
    return isinstance(converter(one), (dates.DateConverter, dates._SwitchableDateConverter))


def axis(name: str, one) -> dict:
    places = one.get_ticklocs()
    if is_date(one):
        scale, ticks = "datetime", [dates.num2date(place).isoformat() for place in places]
    else:
        categorical = isinstance(converter(one), category.StrCategoryConverter)
        scale, ticks = "categorical" if categorical else one.get_scale(), [float(place) for place in places]
    texts = [label.get_text() for label in one.get_ticklabels()]
    return {f"{name}_ticks": ticks, f"{name}_tick_labels": texts, f"{name}_scale": scale}


def reader(one, kind: str):
    """How a coordinate is told: dates of a scatter plot have become numbers."""
    if kind == "scatter" and is_date(one):
        return lambda value: dates.num2date(value).isoformat()
    return lambda value: value


def bar(ax, title, bars) -> dict:
    upright = bars[0].orientation != "horizontal"
    along = ax.xaxis if upright else ax.yaxis
    names = {round(float(at), 6): label.get_text() for at, label in zip(along.get_ticklocs(), along.get_ticklabels())}
    elements = []
    for number, group in enumerate(bars):
        for place, rectangle in enumerate(group):
            start, size = (rectangle.get_x(), rectangle.get_width()) if upright else (rectangle.get_y(), rectangle.get_height())
            middle = float(start + size / 2)
            name = names.get(round(middle, 6)) or tick_at(along, place, middle)
            value = float(rectangle.get_height() if upright else rectangle.get_width())
            elements.append({"label": name, "group": named(group.get_label(), "Group", number), "value": value})
    return {"type": "bar", "title": title, **labels(ax, swapped=not upright), "elements": elements}


def tick_at(along, place: int, middle: float) -> str:
    """The name of a bar that stands beside its tick, as the bars of several groups do."""
    if isinstance(converter(along), category.StrCategoryConverter) or along.get_major_locator().__class__.__name__ == "FixedLocator":
        texts = [label.get_text() for label in along.get_ticklabels()]
        if place < len(texts):
            return texts[place]
    return f"{middle:g}"


def pie(wedges, title) -> dict:
    elements = [
        {"label": wedge.get_label(), "angle": round(abs(float(wedge.theta2) - float(wedge.theta1)), ANGLE_DIGITS),
         "radius": float(wedge.r)}
        for wedge in wedges
    ]
    return {"type": "pie", "title": title, "elements": elements}


def boxes(ax, title) -> dict:
    noted = getattr(ax, BOXES)
    upright = noted[0][1]
    names = [label.get_text() for label in (ax.get_xticklabels() if upright else ax.get_yticklabels())]
    elements = []
    for number, (stat, _) in enumerate(noted):
        name = stat.get("label") or (names[number] if number < len(names) else str(number + 1))
        elements.append({
            "label": str(name), "min": stat["whislo"], "first_quartile": stat["q1"], "median": stat["med"],
            "third_quartile": stat["q3"], "max": stat["whishi"], "outliers": list(stat.get("fliers", [])),
        })
    return {"type": "box_and_whisker", "title": title, **labels(ax, swapped=not upright), "elements": elements}


matplotlib.rcParams.setdefault("figure.max_open_warning", 20)
