"""Only what the model is meant for passes the guard; doubts are told beside the result."""

import dataclasses

import numpy as np
import pydicom
import pytest
from image_sets import grey, save, save_dicom
from pydicom.sequence import Sequence

from primia_jax.config.sections import DataConfig
from primia_jax.data import dicom_guard, open_catalogue, read_inputs
from primia_jax.data.image_files import ImageError
from primia_jax.errors import DataError

RAMP = np.arange(400, dtype=np.uint16).reshape(20, 20)
REFUSE, WARN, OFF = (DataConfig(dicom_guard=guard) for guard in ("refuse", "warn", "off"))


def header(**attributes) -> pydicom.Dataset:
    """Of a chest radiograph; `attributes` replace or (if None) remove defaults."""
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
    dataset.PhotometricInterpretation = "MONOCHROME2"
    for name, value in attributes.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    return dataset


def code(meaning: str | None, value: str | None = None) -> Sequence:
    item = pydicom.Dataset()
    if meaning is not None:
        item.CodeMeaning = meaning
    if value is not None:
        item.CodeValue = value
    return Sequence([item])


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"Modality": "CR", "ViewPosition": "AP"},
        {"Modality": "CR", "SOPClassUID": pydicom.uid.SecondaryCaptureImageStorage},
        {"Modality": None, "SOPClassUID": pydicom.uid.ComputedRadiographyImageStorage},
        {"BodyPartExamined": "PORT_CHEST"},
        {"BodyPartExamined": "Thorax ap"},
        {"BodyPartExamined": None, "AnatomicRegionSequence": code("Chest")},
        {"ViewPosition": "", "ViewCodeSequence": code("postero-anterior")},
        {"ViewPosition": None, "ViewCodeSequence": code(None, "399348003")},
        {"ViewCodeSequence": code("PA projection", "R-10214")},
        {"PixelSpacing": [0.139, 0.14]},
        {"PresentationIntentType": "FOR PRESENTATION"},
    ],
)
def test_frontal_chest_radiographs_pass(attributes):
    assert dicom_guard.check(header(**attributes), REFUSE) == ()


CT = pydicom.uid.CTImageStorage


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Modality": "CT", "SOPClassUID": CT}, "modality CT, not CR or DX"),
        ({"SOPClassUID": CT}, "modality DX, but stored as CT Image Storage"),
        ({"Modality": None, "SOPClassUID": CT}, "no modality"),
        ({"Modality": ""}, None),  # the class says DX
        ({"BodyPartExamined": "CSPINE"}, "body part CSPINE, not CHEST"),
        ({"BodyPartExamined": "CHESTABDPELVIS"}, "body part"),
        ({"BodyPartExamined": "", "AnatomicRegionSequence": code("Knee")}, "body part Knee"),
        ({"ViewPosition": "LL"}, "view LL, not PA or AP"),
        ({"ViewPosition": None, "ViewCodeSequence": code("left lateral")}, "view left lateral"),
        ({"ViewPosition": None, "ViewCodeSequence": code(None, "R-10236")}, "view R-10236"),
        ({"ViewCodeSequence": code(None, "399198007")}, "view 399198007, not PA"),
        ({"ViewCodeSequence": code("left lateral")}, "view left lateral, not PA"),
        ({"ViewCodeSequence": code("lateral", "R-10214")}, "view lateral, not PA"),
        ({"ViewCodeSequence": code(None, "R-10206")}, "contradictory views: PA and AP"),
        ({"PixelAspectRatio": ["2", "1"]}, "not square .PixelAspectRatio 2 and 1"),
        ({"ImagerPixelSpacing": ["0.2", "0.1"]}, "not square"),
        ({"PhotometricInterpretation": "RGB"}, "colour image .RGB."),
        ({"PresentationIntentType": "FOR PROCESSING"}, "raw detector data"),
        ({"Modality": ["CR", "MR"]}, "modality CR and MR, not CR or DX"),
        ({"BodyPartExamined": ["CHEST", "KNEE"]}, "body part CHEST and KNEE, not CHEST"),
        ({"BodyPartExamined": "NO CHEST"}, "body part NO CHEST, not CHEST"),
        ({"ViewPosition": ["PA", "LL"]}, "view LL, not PA or AP"),
        ({"PresentationLUTShape": "INVERSE"}, "black and white contradict"),
    ],
)
def test_others_are_refused_or_remarked(attributes, reason):
    """The same words in both cases; switched off, the guard says nothing."""
    dataset = header(**attributes)
    assert dicom_guard.check(dataset, OFF) == ()
    if reason is None:
        assert dicom_guard.check(dataset, REFUSE) == ()
        return
    with pytest.raises(ImageError, match=reason):
        dicom_guard.check(dataset, REFUSE)
    remarks = dicom_guard.check(dataset, WARN)
    assert len(remarks) == 1
    with pytest.raises(ImageError, match=reason):
        raise ImageError(remarks[0])


def test_all_objections_stand_in_one_line():
    dataset = header(Modality="CT", SOPClassUID=CT, BodyPartExamined="HEAD", ViewPosition="LL")
    with pytest.raises(ImageError, match=r"modality CT.*; body part HEAD.*; view LL") as caught:
        dicom_guard.check(dataset, REFUSE)
    assert "\n" not in str(caught.value) and "config.data.dicom_guard" in str(caught.value)


def test_missing_body_part_and_view_are_remarks():
    """Radiographs often lack them; a result built on that says so."""
    dataset = header(BodyPartExamined=None, ViewPosition=None)
    expected = ("no body part in the header", "no view position in the header")
    assert dicom_guard.check(dataset, REFUSE) == dicom_guard.check(dataset, WARN) == expected


@pytest.mark.parametrize(
    ("attributes", "remarks"),
    [
        ({"PatientOrientation": ["L", "F"]}, ()),
        ({"PatientOrientation": ["LH", "FL"]}, ()),
        ({"PatientOrientation": ["R", "F"]}, ("patient orientation R and F, not L and F",)),
        ({"PatientOrientation": ["R", "H"]}, ("patient orientation R and H, not L and F",)),
        ({"RescaleSlope": 2}, ("a rescale slope without intercept, not applied",)),
        ({"RescaleSlope": 2, "RescaleIntercept": 0}, ()),
    ],
)
def test_doubtful_orientation_and_slope_are_remarks(attributes, remarks):
    dataset = header(**attributes)
    for data in (REFUSE, WARN):
        assert [r.partition(":")[0] for r in dicom_guard.check(dataset, data)] == list(remarks)
    assert dicom_guard.check(dataset, OFF) == ()


def test_the_configuration_widens_the_guard():
    wider = dataclasses.replace(
        REFUSE, dicom_modalities=("ct",), dicom_body_parts=("head",), dicom_views=("LL",)
    )
    dataset = header(Modality="CT", SOPClassUID=CT, BodyPartExamined="HEAD", ViewPosition="LL")
    assert dicom_guard.check(dataset, wider) == ()
    with pytest.raises(ImageError, match="modality DX, not CT"):
        dicom_guard.check(header(), wider)
    anything = dataclasses.replace(REFUSE, dicom_modalities=(), dicom_body_parts=(), dicom_views=())
    assert dicom_guard.check(dataset, anything) == ()


def test_guard_at_diagnosis(tmp_path):
    """A CT slice among pictures is skipped with its reason, or diagnosed with a remark."""
    save(tmp_path / "a.png", grey(1))
    save_dicom(tmp_path / "b.dcm", RAMP, Modality="CT", SOPClassUID=CT)
    save_dicom(tmp_path / "c.dcm", RAMP, ViewPosition=None)
    inputs = read_inputs(str(tmp_path), 16)
    assert inputs.names == ["a.png", "c.dcm"]
    assert inputs.remarks == ("", "no view position in the header")
    ((name, reason),) = inputs.skipped
    assert name == "b.dcm" and reason.startswith("modality CT, not CR or DX")
    warned = read_inputs(str(tmp_path), 16, WARN)
    assert warned.names == ["a.png", "b.dcm", "c.dcm"] and warned.skipped == []
    assert warned.remarks[1] == "modality CT, not CR or DX"


def test_guard_at_training(tmp_path, folder_config):
    """Refused files are listed with their reasons; remarks are counted, without names."""
    for i in range(4):
        path = tmp_path / "ab"[i % 2] / f"{i}.dcm"
        save_dicom(path, RAMP + i, PatientID=str(i), Modality="DX" if i < 3 else "MR")
    config = dataclasses.replace(folder_config, path=str(tmp_path))
    with pytest.raises(DataError, match=r"(?s)1 of 4 .*b/3.dcm: modality MR, not CR or DX"):
        open_catalogue(config, 1, 0)
    skipping = open_catalogue(dataclasses.replace(config, on_error="skip"), 1, 0)
    assert len(skipping) == 3 and skipping.skipped[0][0] == "b/3.dcm"
    warned = open_catalogue(dataclasses.replace(config, dicom_guard="warn"), 1, 0)
    assert len(warned) == 4
    (remark,) = warned.remarks
    assert "1 of 4 images: modality MR" in remark and "3.dcm" not in remark
