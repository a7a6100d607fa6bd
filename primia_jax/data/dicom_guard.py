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
_NEGATIONS = frozenset({"NO", "NON", "NOT", "WITHOUT"})  # in a body part
_UPRIGHT = ["L", "F"]  # PatientOrientation of a frontal image: to its right, to its bottom
_SQUARE = 0.02  # deviation of a pixel's height over its width from 1 that is allowed


def check(dataset: pydicom.Dataset, data: DataConfig) -> tuple[str, ...]:
    """Remarks on an image whose header casts doubt on what it shows.

    An attribute with a value that `data` does not allow is an objection, also where others beside
    it are allowed; `data.dicom_guard` decides if it refuses the image or is a remark. Body part and
    view may be missing from radiographs; their absence is a remark, and so is an orientation that
    says mirrored or turned. The header may be wrong: no pixel is looked at.

    Raises:
      ImageError: with all objections, if `data.dicom_guard` is "refuse".
    """
    if data.dicom_guard == "off":
        return ()
    objections = tuple(filter(None, (rule(dataset, data) for rule in _RULES)))
    absent = tuple(
        f"no {name} in the header"
        for name, value in (("body part", _body_parts(dataset)), ("view position", _views(dataset)))
        if not value
    )
    doubts = tuple(filter(None, (_orientation_doubt(dataset), _rescale_doubt(dataset))))
    if objections and data.dicom_guard == "refuse":
        raise ImageError(f"{'; '.join(objections)} (config.data.dicom_guard = 'refuse')")
    return (*objections, *absent, *doubts)


def _modality_objection(dataset: pydicom.Dataset, data: DataConfig) -> str:
    allowed = [modality.upper() for modality in data.dicom_modalities]
    sop_classes = _texts(dataset, "SOPClassUID")
    modalities = [modality.upper() for modality in _texts(dataset, "Modality")]
    modalities = modalities or [
        _MODALITY_OF_CLASS[each] for each in sop_classes if each in _MODALITY_OF_CLASS
    ]
    if allowed and not modalities:
        return "no modality in the header"
    if allowed and any(modality not in allowed for modality in modalities):
        return f"modality {' and '.join(modalities)}, not {' or '.join(allowed)}"
    radiographs_only = bool(allowed) and set(allowed) <= {"CR", "DX"}
    others = [each for each in sop_classes if each not in _SOP_CLASSES]
    if radiographs_only and others:
        stored = pydicom.uid.UID(others[0]).name
        return f"modality {' and '.join(modalities)}, but stored as {stored}"
    return ""


def _body_part_objection(dataset: pydicom.Dataset, data: DataConfig) -> str:
    body_parts = _body_parts(dataset)
    allowed = {word.upper() for word in data.dicom_body_parts}
    if not allowed or all(_names_any(allowed, body_part) for body_part in body_parts):
        return ""
    words = " or ".join(word.upper() for word in data.dicom_body_parts)
    return f"body part {' and '.join(body_parts)}, not {words}"


def _names_any(allowed: set[str], body_part: str) -> bool:
    """True if one of the words of `body_part` is allowed, and none denies it ("NO CHEST")."""
    words = set(re.findall(r"[^\W_]+", body_part.upper()))
    return bool(words & allowed) and not words & _NEGATIONS


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
    if not photometric.startswith("MONOCHROME"):
        return f"colour image ({photometric})"
    shapes = [shape.upper() for shape in _texts(dataset, "PresentationLUTShape")]
    matching = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    if any(shape in ("INVERSE", "IDENTITY") and shape != matching for shape in shapes):
        return f"black and white contradict: {photometric} with {' and '.join(shapes)} presentation"
    return ""


def _raw_objection(dataset: pydicom.Dataset, data: DataConfig) -> str:
    intents = [intent.upper() for intent in _texts(dataset, "PresentationIntentType")]
    return "raw detector data (for processing)" if "FOR PROCESSING" in intents else ""


_RULES = (
    _modality_objection,
    _body_part_objection,
    _view_objection,
    _shape_objection,
    _colour_objection,
    _raw_objection,
)


def _orientation_doubt(dataset: pydicom.Dataset) -> str:
    """A remark on an image whose PatientOrientation is not that of an upright frontal one."""
    orientation = _texts(dataset, "PatientOrientation")
    if not orientation or [direction[:1].upper() for direction in orientation] == _UPRIGHT:
        return ""
    return f"patient orientation {' and '.join(orientation)}, not L and F: mirrored or turned"


def _rescale_doubt(dataset: pydicom.Dataset) -> str:
    """A remark on a slope without an intercept, or the reverse, which is not applied."""
    slope, intercept = (bool(_texts(dataset, f"Rescale{name}")) for name in ("Slope", "Intercept"))
    if slope == intercept:
        return ""
    present, absent = ("slope", "intercept") if slope else ("intercept", "slope")
    return f"a rescale {present} without {absent}, not applied"


def _body_parts(dataset: pydicom.Dataset) -> list[str]:
    """Values of BodyPartExamined, or else meanings of the codes of AnatomicRegionSequence."""
    meanings = (_text(item, "CodeMeaning") for item in dataset.get("AnatomicRegionSequence") or ())
    return _texts(dataset, "BodyPartExamined") or [meaning for meaning in meanings if meaning]


def _views(dataset: pydicom.Dataset) -> list[str]:
    """PA, AP, LL, … as coded, and the views of the codes beside it, each once.

    A code of a frontal view counts as PA or AP, unless its meaning says otherwise; another code
    counts by its meaning, or without one by its value.
    """
    views = [view.upper() for view in _texts(dataset, "ViewPosition")]
    for item in dataset.get("ViewCodeSequence") or ():
        meaning, value = _text(item, "CodeMeaning"), _text(item, "CodeValue")
        name = _VIEW_NAMES.get(re.sub(r"[\W_]", "", meaning.lower()), meaning)
        frontal = _VIEW_CODES.get(value, "")
        views.append(frontal or name or value)
        if frontal and _OTHER_VIEWS.search(meaning):
            views.append(meaning)
    return list(dict.fromkeys(filter(None, views)))


def _text(dataset: pydicom.Dataset, keyword: str) -> str:
    """An attribute's values, on one line; empty if it is absent."""
    return " and ".join(_texts(dataset, keyword))


def _texts(dataset: pydicom.Dataset, keyword: str) -> list[str]:
    """An attribute's values that are not empty, each on one line and cut at 64 letters."""
    value = dataset.get(keyword)
    values = value if isinstance(value, pydicom.multival.MultiValue) else [value]
    texts = [" ".join(str(each).split())[:64] for each in values if each is not None]
    return [text for text in texts if text]
