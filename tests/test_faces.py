"""Detection on real pictures, and what the detector's wrapper does to frame and boxes."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from insightface.model_zoo import get_model
from onnx import TensorProto, helper

from vafer.errors import ModelError, UsageError
from vafer.faces import YUNET_OUTPUTS, Detector, Fit
from vafer.options import DetectorOptions
from vafer.store import WEIGHTS

DETECTORS = ["scrfd_500m.onnx", "scrfd_2.5g.onnx", "yunet_n_dynamic.onnx"]


@pytest.fixture(scope="module")
def six_faces(shared: Path) -> np.ndarray:
    return cv2.imread(str(shared / "faces" / "six_faces.jpg"), cv2.IMREAD_COLOR_RGB)


@pytest.mark.parametrize("name", DETECTORS)
def test_six_faces_are_found(shared: Path, six_faces: np.ndarray, name: str) -> None:
    detector = Detector(shared / "models" / name)
    faces = detector.detect(six_faces)
    assert len(faces) == 6
    assert detector.has_landmarks
    assert detector.device == "cpu"
    assert (np.diff(faces.scores) <= 0).all()
    left_eye, right_eye, nose, left_mouth, right_mouth = np.moveaxis(faces.landmarks, 1, 0)
    assert (left_eye[:, 0] < right_eye[:, 0]).all()
    assert (left_mouth[:, 0] < right_mouth[:, 0]).all()
    assert (left_eye[:, 1] < nose[:, 1]).all()
    assert (nose[:, 1] < left_mouth[:, 1]).all()
    for dtype in (faces.boxes, faces.scores, faces.landmarks):
        assert dtype.dtype == np.float32


def test_the_families_agree_on_where_the_faces_are(shared: Path, six_faces: np.ndarray) -> None:
    found = [Detector(shared / "models" / name).detect(six_faces) for name in DETECTORS]
    centres = [np.sort(f.landmarks.mean(axis=1), axis=0) for f in found]
    np.testing.assert_allclose(centres[0], centres[1], atol=6)
    np.testing.assert_allclose(centres[0], centres[2], atol=6)


def test_boxes_equal_insightface_on_a_frame_that_needs_no_change(
    shared: Path, six_faces: np.ndarray
) -> None:
    frame = cv2.resize(six_faces, (640, 448), interpolation=cv2.INTER_AREA)
    path = str(shared / "models" / "scrfd_2.5g.onnx")
    reference = get_model(path, providers=["CPUExecutionProvider"])
    reference.prepare(ctx_id=-1, input_size=(640, 448), det_thresh=0.5)
    expected, landmarks = reference.detect(np.ascontiguousarray(frame[:, :, ::-1]))
    found = Detector(Path(path)).detect(frame)
    np.testing.assert_allclose(found.boxes, expected[:, :4].clip(0, (640, 448) * 2), atol=1e-3)
    np.testing.assert_allclose(found.scores, expected[:, 4], atol=1e-5)
    np.testing.assert_allclose(found.landmarks, landmarks, atol=1e-3)


def fitted(
    image: np.ndarray, size: int, fixed_input: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    fit = Fit.of((image.shape[0], image.shape[1]), size, fixed_input)
    return fit.canvas_of(image), fit.scale


def test_frames_are_shrunk_never_enlarged_and_padded_to_32() -> None:
    canvas, scale = fitted(np.full((270, 480, 3), 9, np.uint8), 640, None)
    assert canvas.shape == (288, 480, 3)
    assert scale.tolist() == [1, 1]
    assert canvas[:270].min() == 9
    assert canvas[270:].max() == 0

    canvas, scale = fitted(np.zeros((1080, 1920, 3), np.uint8), 640, None)
    assert canvas.shape == (384, 640, 3)
    assert scale.tolist() == pytest.approx([1 / 3, 1 / 3])

    canvas, _ = fitted(np.full((1920, 1080, 3), 9, np.uint8), 640, None)
    assert canvas.shape == (640, 384, 3)
    assert canvas[:, :360].min() == 9
    assert canvas[:, 360:].max() == 0

    canvas, scale = fitted(np.zeros((100, 900, 3), np.uint8), 640, (320, 320))
    assert canvas.shape == (320, 320, 3)
    assert scale.tolist() == pytest.approx([320 / 900, 0.36])  # 36 rows of 100


def test_the_network_sees_bgr() -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    assert fitted(red, 640, None)[0][0, 0].tolist() == [0, 0, 255]


def test_boxes_are_clipped_to_the_frame(shared: Path, six_faces: np.ndarray) -> None:
    faces = Detector(shared / "models" / "scrfd_2.5g.onnx").detect(six_faces)
    x1, y1, x2, y2 = faces.boxes[0].astype(int)
    closed_in = six_faces[y1 + 8 : y2 - 8, x1 + 8 : x2 - 8]
    height, width = closed_in.shape[:2]
    padded = Detector(shared / "models" / "scrfd_2.5g.onnx", DetectorOptions(threshold=0.1)).detect(
        closed_in
    )
    assert len(padded)
    assert padded.boxes.min() >= 0
    assert (padded.boxes[:, [0, 2]] <= width).all()
    assert (padded.boxes[:, [1, 3]] <= height).all()


def test_min_face_and_max_faces(shared: Path, six_faces: np.ndarray) -> None:
    path = shared / "models" / "yunet_n_dynamic.onnx"
    every = Detector(path).detect(six_faces)
    sides = (every.boxes[:, 2:] - every.boxes[:, :2]).min(axis=1)
    limit = float(np.sort(sides)[2])
    large = Detector(path, DetectorOptions(min_face=limit)).detect(six_faces)
    assert len(large) == 4
    two = Detector(path, DetectorOptions(max_faces=2)).detect(six_faces)
    np.testing.assert_array_equal(two.boxes, every.boxes[:2])


@pytest.mark.parametrize("name", DETECTORS)
def test_a_blank_frame_has_no_face(shared: Path, name: str) -> None:
    faces = Detector(shared / "models" / name).detect(np.full((90, 160, 3), 128, np.uint8))
    assert len(faces) == 0
    assert faces.boxes.shape == (0, 4)
    assert faces.landmarks.shape == (0, 5, 2)


def test_every_frame_size_uses_the_same_session(shared: Path, six_faces: np.ndarray, capfd) -> None:
    detector = Detector(shared / "models" / "scrfd_500m.onnx")
    for size in (300, 400, 500):
        detector.detect(six_faces[:size, :size])
    assert capfd.readouterr().err == ""


def graph(path: Path, n_outputs: int, shape: list[int]) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    outputs = [
        helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, shape) for i in range(n_outputs)
    ]
    nodes = [helper.make_node("Identity", ["x"], [o.name]) for o in outputs]
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], outputs), opset_imports=[helper.make_opsetid("", 13)]
    )
    made.ir_version = 8
    onnx.save(made, path)
    return path


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("not a graph")
    with pytest.raises(ModelError, match=r"text\.onnx"):
        Detector(text)
    with pytest.raises(ModelError, match="not a face detector"):
        Detector(graph(tmp_path / "recognition.onnx", 1, [1, 3, 112, 112]))
    with pytest.raises(ModelError, match="not a face detector"):
        Detector(graph(tmp_path / "nothing.onnx", 1, [1, 3, 50, 70]))


def test_what_only_looks_like_a_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"seven\.onnx does not give what a face detector"):
        Detector(graph(tmp_path / "seven.onnx", 7, [1, 3, 64, 64]))
    with pytest.raises(ModelError, match=r"nine\.onnx does not .* outputs of shapes \[1, 3, 64, 6"):
        Detector(graph(tmp_path / "nine.onnx", 9, [1, 3, 64, 64]))
    with pytest.raises(ModelError, match=r"eight\.onnx cannot be run as a face detector"):
        Detector(graph(tmp_path / "eight.onnx", 9, [8, 3, 64, 64]))
    path = graph(tmp_path / "yunet.onnx", 12, [1, 3, 64, 64])
    model = onnx.load_model(path)
    for output, name in zip(model.graph.output, sorted(YUNET_OUTPUTS), strict=True):
        for node in model.graph.node:
            node.output[:] = [name if o == output.name else o for o in node.output]
        output.name = name
    onnx.save_model(model, path)
    with pytest.raises(ModelError, match=r"yunet\.onnx has the outputs of YuNet, and they hold"):
        Detector(path)
    for node in model.graph.node:
        node.op_type = "Unheard"
    onnx.save_model(model, path)
    with pytest.raises(ModelError, match=r"yunet\.onnx has the outputs of YuNet, and OpenCV"):
        Detector(path)
    with pytest.raises(ModelError, match=r"gone\.onnx: cannot be read: No such file"):
        Detector(tmp_path / "gone.onnx")


@pytest.mark.parametrize("name", ["scrfd_500m.onnx", "yunet_n_dynamic.onnx"])
def test_weights_that_are_no_numbers_are_refused(shared: Path, tmp_path: Path, name: str) -> None:
    model = onnx.load_model(shared / "models" / name)
    floats = (w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT)
    weights = max(floats, key=lambda weight: len(weight.raw_data))
    values = onnx.numpy_helper.to_array(weights).copy()
    values.reshape(-1)[:] = np.nan
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save_model(model, tmp_path / "nan.onnx")
    with pytest.raises(ModelError, match=r"nan\.onnx gives NaN or infinite numbers"):
        Detector(tmp_path / "nan.onnx")


@pytest.mark.parametrize("name", ["scrfd_500m.onnx", "yunet_n_dynamic.onnx"])
def test_a_file_is_what_runs_whatever_it_is_called(
    shared: Path, six_faces: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    decoy = tmp_path / ".insightface" / "models" / "mine"  # insightface takes a name for a pack
    decoy.mkdir(parents=True)
    (decoy / "det.onnx").write_bytes((shared / "models" / "scrfd_2.5g.onnx").read_bytes())
    monkeypatch.chdir(tmp_path)
    expected = Detector(shared / "models" / name).detect(six_faces)
    for own in ("mine", "mine.ONNX"):
        Path(own).write_bytes((shared / "models" / name).read_bytes())
        found = Detector(Path(own)).detect(six_faces)
        np.testing.assert_array_equal(found.scores, expected.scores)


def test_weights_beside_the_file_are_refused(shared: Path, tmp_path: Path) -> None:
    model = onnx.load_model(shared / "models" / "scrfd_500m.onnx")
    path = tmp_path / "split.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin")
    with pytest.raises(ModelError, match=r"split\.onnx keeps its weights in other files"):
        Detector(path)
    model = onnx.load_model(shared / "models" / "scrfd_500m.onnx")
    largest = max(model.graph.initializer, key=lambda weight: len(weight.raw_data))
    model.graph.initializer.remove(largest)
    model.graph.node.insert(0, helper.make_node("Constant", [], [largest.name], value=largest))
    onnx.save_model(
        model, path, save_as_external_data=True, location="w.bin", convert_attribute=True
    )
    with pytest.raises(ModelError, match=r"split\.onnx keeps its weights in other files"):
        Detector(path)


def test_a_damaged_detector_of_our_own_is_refused(tmp_path: Path) -> None:
    content = bytearray((WEIGHTS / "vafer-faces.onnx").read_bytes())
    model = onnx.load_model_from_string(bytes(content))
    weights = max(model.graph.initializer, key=lambda weight: len(weight.raw_data)).raw_data
    content[content.index(weights) + len(weights) // 2] ^= 0x80
    (tmp_path / "flipped.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"flipped\.onnx is damaged, or was changed: its weights"):
        Detector(tmp_path / "flipped.onnx")


def test_a_second_look_is_what_the_card_asks_for(shared: Path, tmp_path: Path) -> None:
    model = onnx.load_model(shared / "models" / "scrfd_500m.onnx")
    path = tmp_path / "carded.onnx"
    for card, looks_twice in (("{}", False), ('{"second_look": true}', True)):
        onnx.helper.set_model_props(model, {"vafer": card})
        onnx.save_model(model, path)
        assert Detector(path).looks_twice == looks_twice


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 16},
        {"threshold": 0},
        {"threshold": 1.5},
        {"min_face": -1},
        {"min_face": float("nan")},
        {"max_faces": 0},
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected"):
        DetectorOptions(**wrong)


def test_onnx_runtime_reports_nothing(tmp_path: Path) -> None:
    """It would keep a device id, and what it is going to send, below the user's folders."""
    code = (
        "import numpy, vafer\n"
        "from vafer.faces import Detector\n"
        "from vafer.store import choose_detector\n"
        "path = choose_detector(None, on_notice=print).path\n"
        "Detector(path).detect(numpy.zeros((64, 64, 3), numpy.uint8))"
    )
    # Nothing of the environment: ONNX Runtime is silent where it says that programs are tested.
    subprocess.run([sys.executable, "-c", code], check=True, env={"HOME": str(tmp_path)})
    assert [*tmp_path.rglob("*")] == []


SURE, DOUBTED, BELOW = 0.95, 0.6, 0.35  # scores; below the threshold, but not by far


def answering(
    answers: list[tuple[np.ndarray, np.ndarray]], path: Path = WEIGHTS / "vafer-faces.onnx"
) -> tuple[Detector, list[np.ndarray]]:
    """A detector whose network gives these answers, and the pictures that it will have seen."""
    detector = Detector(path)
    seen: list[np.ndarray] = []

    def network(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(picture)
        boxes_scores, points = answers[len(seen) - 1]
        return boxes_scores.astype(np.float32), points.astype(np.float32)

    detector._network = network
    return detector, seen


def answer(*boxes_scores: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Faces (x1, y1, x2, y2, score), all points of each in its middle."""
    found = np.reshape(boxes_scores, (-1, 5))
    middles = (found[:, :2] + found[:, 2:4]) / 2
    return found, np.repeat(middles[:, None], 5, axis=1)


def test_what_the_own_detector_doubts_is_looked_at_again_from_nearer() -> None:
    frame = np.zeros((720, 1280, 3), np.uint8)
    frame[300:340, 600:640] = 200  # 20 pixels of the 640 that the frame is shrunk to
    first = answer(
        (10, 10, 60, 60, SURE), (300, 150, 320, 170, DOUBTED), (500, 100, 520, 120, BELOW)
    )
    # Each piece is three faces of 40 pixels wide, a multiple of 32: 128.
    second = answer((44, 44, 84, 84, 0.9), (172, 44, 212, 84, 0.6))
    detector, seen = answering([first, second])
    faces = detector.detect(frame)

    assert seen[1].shape == (128, 256, 3)
    assert (seen[1][44:84, 44:84] == 200).all()  # the frame's own pixels
    assert not seen[1][44:84, 172:212].any()
    assert len(faces) == 2  # the third is below the threshold even so
    # The mean of both looks by logits: (ln 1.5 + ln 9) / 2.
    odds = np.sqrt(1.5 * 9)
    np.testing.assert_allclose(faces.scores, [SURE, odds / (1 + odds)], rtol=1e-5)
    np.testing.assert_allclose(faces.boxes, [[20, 20, 120, 120], [600, 300, 640, 340]], atol=1e-3)
    np.testing.assert_allclose(faces.landmarks[1], [[620, 320]] * 5, atol=1e-3)


def test_a_face_below_the_threshold_counts_where_the_second_look_is_sure() -> None:
    first = answer((100, 100, 160, 160, BELOW))
    detector, _ = answering([first, answer((68, 68, 128, 128, 0.8))])
    faces = detector.detect(np.zeros((480, 640, 3), np.uint8))
    assert len(faces) == 1
    odds = np.sqrt(BELOW / (1 - BELOW) * 4)
    np.testing.assert_allclose(faces.scores, odds / (1 + odds), rtol=1e-5)


def test_what_is_not_seen_again_is_no_face() -> None:
    detector, seen = answering([answer((300, 150, 340, 190, 0.7)), answer()])
    assert len(detector.detect(np.zeros((480, 640, 3), np.uint8))) == 0
    assert len(seen) == 2


def test_a_large_face_keeps_the_box_that_more_pixels_gave() -> None:
    first = answer((100, 100, 300, 300, 0.7))  # seen again at 64 pixels instead of 200
    detector, _ = answering([first, answer((70, 70, 134, 134, 0.7))])
    faces = detector.detect(np.zeros((480, 640, 3), np.uint8))
    np.testing.assert_allclose(faces.boxes, [[100, 100, 300, 300]])
    np.testing.assert_allclose(faces.landmarks[0], [[200, 200]] * 5)


def test_many_doubted_faces_are_looked_at_in_parts() -> None:
    corners = np.stack(np.meshgrid(np.arange(15), np.arange(10)), axis=-1).reshape(-1, 2) * 40.0
    boxes = [(*corner, *(corner + 20), DOUBTED) for corner in corners]
    detector, seen = answering([answer(*boxes), answer(), answer(), answer()])
    assert len(detector.detect(np.zeros((480, 640, 3), np.uint8))) == 0
    assert len(seen) == 1 + 3  # 64, 64 and 22


def test_nothing_doubted_costs_no_second_look() -> None:
    detector, seen = answering([answer((10, 10, 60, 60, SURE)), answer()])
    frame = np.zeros((480, 640, 3), np.uint8)
    assert len(detector.detect(frame)) == 1
    assert len(detector.detect(frame)) == 0
    assert len(seen) == 2


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_the_second_look_keeps_to_the_threshold(six_faces: np.ndarray, threshold: float) -> None:
    options = DetectorOptions(threshold=threshold, size=160)
    faces = Detector(WEIGHTS / "vafer-faces.onnx", options).detect(six_faces)
    assert len(faces)
    assert (faces.scores >= threshold).all()


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_of_others_look_once(shared: Path, name: str) -> None:
    first = answer((300, 150, 340, 190, DOUBTED))
    detector, seen = answering([first], shared / "models" / name)
    assert not detector.looks_twice
    faces = detector.detect(np.zeros((480, 640, 3), np.uint8))
    np.testing.assert_allclose(faces.scores, DOUBTED)
    assert len(seen) == 1


def test_a_neighbour_does_not_vouch_for_a_doubted_face() -> None:
    first = answer((100, 100, 140, 140, SURE), (118, 100, 158, 140, DOUBTED))
    # The piece shows the neighbour beside an empty middle.
    detector, seen = answering([first, answer((35.2, 64, 99.2, 128, SURE))])
    faces = detector.detect(np.zeros((720, 1280, 3), np.uint8))
    assert len(seen) == 2
    np.testing.assert_allclose(faces.boxes, [[200, 200, 280, 280]])


def test_two_that_turn_out_to_be_one_are_one() -> None:
    first = answer((100, 100, 120, 120, DOUBTED), (111, 100, 131, 120, DOUBTED))
    # Of 40 pixels in the frame, 15 apart there.
    detector, _ = answering([first, answer((48, 44, 88, 84, 0.9), (169, 44, 209, 84, 0.8))])
    faces = detector.detect(np.zeros((720, 1280, 3), np.uint8))
    np.testing.assert_allclose(faces.boxes, [[204, 200, 244, 240]])
    np.testing.assert_allclose(faces.landmarks, np.full((1, 5, 2), [224, 220]))


def test_faces_that_are_too_small_to_be_kept_are_not_looked_at() -> None:
    detector, seen = answering([answer((100, 100, 120, 120, DOUBTED))])
    detector.options = DetectorOptions(min_face=50)
    assert len(detector.detect(np.zeros((720, 1280, 3), np.uint8))) == 0
    assert len(seen) == 1


def test_what_is_hardly_anything_is_looked_at_once() -> None:
    first = answer((100, 100, 140, 140, 0.05), (300, 100, 340, 140, 0.15))
    detector, seen = answering([first, answer((44, 44, 84, 84, 0.2))])
    detector.options = DetectorOptions(threshold=0.03)
    assert len(detector.detect(np.zeros((480, 640, 3), np.uint8))) == 2
    assert len(seen) == 1  # 0.15 is sure enough at such a threshold
    assert Detector(WEIGHTS / "vafer-faces.onnx", detector.options)._least == 0.03
    assert Detector(WEIGHTS / "vafer-faces.onnx", DetectorOptions(threshold=0.15))._least == 0.1
