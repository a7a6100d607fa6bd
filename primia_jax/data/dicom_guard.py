"""A check that a DICOM image is what the model is meant for: a frontal chest radiograph.

Source: DICOM PS3.3, C.7.3.1.1.1 (Modality), C.8.11.5 (DX views), annex L (body parts).
"""

import re

import pydicom

from primia_jax.config.sections import DataConfig
from primia_jax.data.decoded import ImageError

# Radiographs, and captures of any kind, whose modality then decides.
_SOP_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # CR
    "1.2.840.10008.5.1.4.1.1.1.1",  # DX, for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # DX, for processing
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture
    "1.2.840.10008.5.1.4.1.1.7.1",
    "1.2.840.10008.5.1.4.1.1.7.2",
    "1.2.840.10008.5.1.4.1.1.7.3",
    "1.2.840.10008.5.1.4.1.1.7.4",
)
_MODALITY_OF_CLASS = dict(zip(_SOP_CLASSES, ("CR", "DX", "DX")))
_VIEW_NAMES = {"posteroanterior": "PA", "anteroposterior": "AP"}
# Codes of frontal views (SRT and SNOMED CT); a code may stand without its meaning.
_VIEW_CODES = {
    "R-10214": "PA",
    "272479007": "PA",
    "R-10206": "AP",
    "399348003": "AP",
}
_OTHER_VIEWS = re.compile("lateral|oblique", re.IGNORECASE)
_SQUARE = 0.02  # deviation of a pixel's height over its width from 1 that is allowed


def check(dataset: pydicom.Dataset, data: DataConfig) -> tuple[str, ...]:
    """Remarks on an image whose header casts doubt on what it shows.

    An attribute with a value that `data` does not allow is an objection; `data.dicom_guard` decides
    if it refuses the image or is a remark. Body part and view may be missing from radiographs;
    their absence is a remark. The header may be wrong: no pixel is looked at.

    Raises:
      ImageError: with all objections, if `data.dicom_guard` is "refuse".
    """
    if data.dicom_guard == "off":
        return ()
    objections = tuple(filter(None, (rule(dataset, data) for rule in _RULES)))
    absent = tuple(
        f"no {name} in the header"
        for name, value in (("body part", _body_part(dataset)), ("view position", _views(dataset)))
        if not value
    )
    if objections and data.dicom_guard == "refuse":
        raise ImageError(f"{'; '.join(objections)} (config.data.dicom_guard = 'refuse')")
    return (*objections, *absent)


def _modality_objection(dataset: pydicom.Dataset, data: DataConfig) -> str:
    allowed = [modality.upper() for modality in data.dicom_modalities]
    sop_class = _text(dataset, "SOPClassUID")
    modality = _text(dataset, "Modality").upper() or _MODALITY_OF_CLASS.get(sop_class, "")
    if allowed and not modality:
        return "no modality in the header"
    if allowed and modality not in allowed:
        return f"modality {modality}, not {' or '.join(allowed)}"
    radiographs_only = bool(allowed) and set(allowed) <= {"CR", "DX"}
    if radiographs_only and sop_class and sop_class not in _SOP_CLASSES:
        return f"modality {modality}, but stored as {pydicom.uid.UID(sop_class).name}"
    return ""


def _body_part_objection(dataset: pydicom.Dataset, data: DataConfig) -> str:
    body_part = _body_part(dataset)
    words = re.findall(r"[^\W_]+", body_part.upper())
    allowed = [word.upper() for word in data.dicom_body_parts]
    if not body_part or not allowed or any(word in allowed for word in words):
        return ""
    return f"body part {body_part}, not {' or '.join(allowed)}"


def _view_objection(dataset: pydicom.Dataset, data: DataConfig) -> str:
    allowed = [view.upper() for view in data.dicom_views]
    views = _views(dataset)
    others = [view for view in views if view.upper() not in allowed]
    if allowed and others:
        return f"view {' and '.join(others)}, not {' or '.join(allowed)}"
    if allowed and len(views) > 1:
        return f"contradictory views: {' and '.join(views)}"
    return ""


def _shape_objection(dataset: pydicom.Dataset, data: DataConfig) -> str:
    for keyword in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"):
        sides = dataset.get(keyword)
        if not isinstance(sides, pydicom.multival.MultiValue) or len(sides) != 2:
            continue
        height, width = (float(side) for side in sides)
        if width <= 0 or not abs(height / width - 1) <= _SQUARE:
            return f"pixels that are not square ({keyword} {sides[0]} and {sides[1]})"
    return ""


def _colour_objection(dataset: pydicom.Dataset, data: DataConfig) -> str:
    photometric = _text(dataset, "PhotometricInterpretation")
    return "" if photometric.startswith("MONOCHROME") else f"colour image ({photometric})"


def _raw_objection(dataset: pydicom.Dataset, data: DataConfig) -> str:
    intent = _text(dataset, "PresentationIntentType").upper()
    return "raw detector data (for processing)" if intent == "FOR PROCESSING" else ""


_RULES = (
    _modality_objection,
    _body_part_objection,
    _view_objection,
    _shape_objection,
    _colour_objection,
    _raw_objection,
)


def _body_part(dataset: pydicom.Dataset) -> str:
    return _text(dataset, "BodyPartExamined") or _meaning(dataset, "AnatomicRegionSequence")


def _views(dataset: pydicom.Dataset) -> list[str]:
    """PA, AP, LL, … as coded, and the views of the codes beside it, each once.

    A code of a frontal view counts as PA or AP, unless its meaning says otherwise; another code
    counts by its meaning, or without one by its value.
    """
    views = [_text(dataset, "ViewPosition").upper()]
    for item in dataset.get("ViewCodeSequence") or ():
        meaning, value = _text(item, "CodeMeaning"), _text(item, "CodeValue")
        name = _VIEW_NAMES.get(re.sub(r"[\W_]", "", meaning.lower()), meaning)
        frontal = _VIEW_CODES.get(value, "")
        views.append(frontal or name or value)
        if frontal and _OTHER_VIEWS.search(meaning):
            views.append(meaning)
    return list(dict.fromkeys(filter(None, views)))


def _meaning(dataset: pydicom.Dataset, keyword: str) -> str:
    """The meaning of the first code in a sequence; empty if there is none."""
    sequence = dataset.get(keyword)
    return _text(sequence[0], "CodeMeaning") if sequence else ""


def _text(dataset: pydicom.Dataset, keyword: str) -> str:
    """An attribute's first value, on one line; empty if it is absent."""
    value = dataset.get(keyword)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    return " ".join(str(value).split())[:64] if value is not None else ""
