"""Track ids and shot cuts: drawn faces, drawn pictures, and real recordings with known cuts."""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from insightface.model_zoo import get_model

from vafer.cuts import CutDetector
from vafer.tracks import Tracker, box_distance


def texture(seed: int) -> np.ndarray:
    """A picture with large and small structure, uint8 (180, 320, 3)."""
    coarse = np.random.default_rng(seed).integers(20, 200, (6, 10, 3), np.uint8)
    return cv2.resize(coarse, (320, 180), interpolation=cv2.INTER_CUBIC)


def face(x: float, y: float = 100.0, size: float = 50.0) -> list[float]:
    return [x - size / 2, y - size / 2, x + size / 2, y + size / 2]


def update(
    tracker: Tracker,
    faces: list[list[float]],
    time_s: float,
    *,
    scores: list[float] | None = None,
    is_cut: bool = False,
) -> list[int]:
    ids = tracker.update(
        np.array(faces, np.float32).reshape(-1, 4),
        np.array([0.9] * len(faces) if scores is None else scores, np.float32),
        time_s=time_s,
        is_cut=is_cut,
    )
    assert ids.dtype == np.int32
    assert ids.shape == (len(faces),)
    return ids.tolist()


def test_ids_count_up_in_order_of_appearance_and_of_score() -> None:
    tracker = Tracker()
    assert update(tracker, [face(100), face(300)], 0.0, scores=[0.6, 0.9]) == [1, 0]
    assert update(tracker, [face(500), face(100), face(300)], 0.04) == [2, 1, 0]


@pytest.mark.parametrize(
    ("gap_s", "kept"), [(0.04, True), (0.3, True), (0.5, True), (0.52, False), (2.0, False)]
)
def test_a_miss_keeps_the_id_for_half_a_second(gap_s: float, kept: bool) -> None:
    """Empty frames all along the miss. It starts where floats are unkind: 0.54 - 0.5 > 0.04."""
    tracker, start = Tracker(), 0.04
    update(tracker, [face(100)], start)
    for empty_s in np.arange(0.02, gap_s - 1e-9, 0.02):
        assert update(tracker, [], start + empty_s) == []
    assert update(tracker, [face(104)], start + gap_s) == ([0] if kept else [1])


def test_max_gap_can_be_chosen() -> None:
    tracker = Tracker(max_gap_s=0.1)
    update(tracker, [face(100)], 0.0)
    update(tracker, [], 0.1)
    assert update(tracker, [face(100)], 0.2) == [1]


def test_sparse_frames_link_to_the_one_before_and_no_further() -> None:
    tracker = Tracker()
    assert [update(tracker, [face(100 + 20 * (k % 2))], float(k)) for k in range(5)] == [[0]] * 5
    update(tracker, [], 5.0)
    assert update(tracker, [face(100)], 6.0) == [1]


def test_variable_frame_rate_counts_time_not_frames() -> None:
    """Forty misses 10 ms apart are short; two 0.4 s apart are long."""
    tracker = Tracker()
    update(tracker, [face(100)], 0.0)
    for k in range(1, 41):
        update(tracker, [], k * 0.01)
    assert update(tracker, [face(100)], 0.41) == [0]
    update(tracker, [], 0.81)
    assert update(tracker, [face(100)], 1.21) == [1]


def test_crossing_faces_keep_their_ids() -> None:
    """Two people pass one another, one a little higher; for a while their boxes overlap."""
    tracker = Tracker()
    for k in range(41):
        ids = update(tracker, [face(100 + 5 * k, y=95), face(300 - 5 * k, y=120)], k * 0.04)
        assert ids == [0, 1]


def test_a_hidden_face_does_not_hand_its_id_to_the_one_in_front() -> None:
    tracker = Tracker()
    assert update(tracker, [face(300, size=200), face(330, size=50)], 0.0) == [0, 1]
    assert update(tracker, [face(330, size=50)], 0.04) == [1]
    assert update(tracker, [face(305, size=200)], 0.08) == [0]


def test_a_face_elsewhere_or_of_another_size_is_another_face() -> None:
    for other in (face(160), face(100, y=160), face(100, size=110), face(100, size=24)):
        tracker = Tracker()
        update(tracker, [face(100)], 0.0)
        assert update(tracker, [other], 0.04) == [1]


def test_the_best_total_assignment_wins_over_the_nearest_pair() -> None:
    """A row of people shifts by more than half their spacing: the nearest pair is a wrong one."""
    tracker = Tracker()
    update(tracker, [face(100), face(140)], 0.0, scores=[0.9, 0.8])
    assert update(tracker, [face(124), face(164)], 0.04) == [0, 1]


def test_a_low_score_does_not_break_a_track() -> None:
    tracker = Tracker()
    for k, score in enumerate([0.9, 0.5, 0.05, 0.9]):
        assert update(tracker, [face(100 + k)], k * 0.04, scores=[score]) == [0]


def test_boxes_without_area_still_get_ids() -> None:
    tracker = Tracker()
    empty = [0.0, 50.0, 0.0, 90.0]
    assert update(tracker, [empty, face(100)], 0.0, scores=[0.6, 0.9]) == [1, 0]
    assert update(tracker, [empty, face(100)], 0.04) == [1, 0]


def test_box_distance_counts_face_sizes_and_octaves() -> None:
    boxes = np.array([face(125), face(100, size=100), face(100)])
    np.testing.assert_allclose(box_distance(np.array([face(100)]), boxes), [[0.5, 1.0, 0.0]])


tracks_in_a_row = st.lists(
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 400), st.integers(5, 200)), max_size=6),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(tracks_in_a_row, st.randoms(use_true_random=False))
def test_every_face_has_one_id_whatever_the_order_of_detections(frames, random) -> None:
    tracker, shuffled = Tracker(), Tracker()
    appeared: list[int] = []
    for k, drawn in enumerate(frames):
        faces = [face(x, y, size) for x, y, size in dict.fromkeys(drawn)]
        scores = [0.9 - 0.05 * i for i in range(len(faces))]
        ids = update(tracker, faces, k * 0.2, scores=scores)
        assert min(ids, default=0) >= 0
        assert len(set(ids)) == len(ids)
        appeared += [i for i in ids if i not in appeared]

        order = random.sample(range(len(faces)), len(faces))
        others = update(
            shuffled, [faces[i] for i in order], k * 0.2, scores=[scores[i] for i in order]
        )
        assert others == [ids[i] for i in order]
    assert appeared == list(range(len(appeared)))


def cuts(images: list[np.ndarray]) -> list[int]:
    detector = CutDetector()
    return [index for index, image in enumerate(images) if detector.update(image)]


def test_a_cut_ends_all_ids() -> None:
    tracker = Tracker()
    assert update(tracker, [face(100)], 0.00) == [0]
    assert update(tracker, [face(100)], 0.04) == [0]
    assert update(tracker, [face(100)], 0.08, is_cut=True) == [1]
    assert update(tracker, [face(100)], 0.12) == [1]


def test_a_cut_in_a_frame_without_faces_ends_all_ids() -> None:
    tracker = Tracker()
    update(tracker, [face(100)], 0.00)
    update(tracker, [], 0.04, is_cut=True)
    assert update(tracker, [face(100)], 0.08) == [1]


def test_cuts_one_frame_apart_are_all_found() -> None:
    assert cuts([texture(0), texture(1), texture(2), texture(2), texture(3)]) == [1, 2, 4]


def test_a_pan_is_no_cut() -> None:
    wide = np.concatenate([texture(0), texture(1)], axis=1)
    assert cuts([wide[:, x : x + 320] for x in range(0, 320, 8)]) == []


@pytest.mark.parametrize("gain", [0.4, 1.5, 2.5])
def test_a_flash_is_no_cut_nor_is_a_fade(gain: float) -> None:
    """PySceneDetect's ContentDetector alone takes the flashes of gain 0.4 and 2.5 for cuts."""
    picture = texture(0)
    lit = np.clip(picture.astype(float) * gain, 0, 255).astype(np.uint8)
    assert cuts([picture, lit, picture]) == []
    steps = np.linspace(0, 1, 12)
    assert cuts([cv2.addWeighted(picture, 1 - k, lit, k, 0) for k in steps]) == []


@pytest.mark.parametrize("blank", [0, 255])
def test_across_a_blank_frame_the_layout_decides(blank: int) -> None:
    flat = np.full_like(texture(0), blank)
    assert cuts([texture(0), flat, texture(0), flat]) == []
    assert cuts([texture(0), flat, flat, texture(1)]) == [3]


def test_a_cut_through_a_fade_to_black_is_found() -> None:
    """In black and white, so that no colour gives the cut away while both shots are dim."""

    def dimmed(seed: int, gain: float) -> np.ndarray:
        grey = cv2.cvtColor(texture(seed), cv2.COLOR_RGB2GRAY)
        return np.repeat((grey * gain).astype(np.uint8)[..., None], 3, axis=2)

    gains = np.linspace(1, 0, 30)
    out, back = [dimmed(0, g) for g in gains], [dimmed(1, g) for g in gains[::-1]]
    assert len(cuts(out + back)) == 1
    assert cuts(out + [dimmed(0, g) for g in gains[::-1]]) == []


def decode(path: Path) -> list[np.ndarray]:
    """All frames at 160 pixels wide, uint8 RGB; the cut detector shrinks them that far itself."""
    with av.open(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        return [
            frame.to_ndarray(format="rgb24", width=160, height=90)
            for frame in container.decode(video=0)
        ]


# Read off contact sheets of the frames around each cut. The VFR recordings are two shots each:
# a title and a man; in the second a black frame (72) stands between them.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stage_cuts.mp4", [20, 82, 211]),
        ("none_then_face_vfr.mov", [96]),
        ("face_then_none_vfr.mov", [73]),
        ("smile_cry_smile.mp4", []),
        ("expressive_talk.mp4", []),
        ("turning_head.mp4", []),
        ("crowd_1080p.mp4", []),
    ],
)
def test_cuts_of_real_recordings(shared: Path, name: str, expected: list[int]) -> None:
    frames = decode(shared / "videos" / name)
    assert cuts(frames) == expected
    if name == "stage_cuts.mp4":
        return  # a head fills the picture and leaves it: sampled sparsely, that looks like cuts too
    for every in (5, 10, 30):
        sampled = [-(-cut // every) for cut in expected if -(-cut // every) * every < len(frames)]
        assert cuts(frames[::every]) == sampled


def test_every_real_cut_is_found_at_any_sampling(shared: Path) -> None:
    frames = decode(shared / "videos" / "stage_cuts.mp4")
    for every in (2, 5, 10, 30):
        found = cuts(frames[::every])
        assert {-(-cut // every) for cut in (20, 82, 211)} <= set(found)


def test_ids_of_a_real_recording_do_not_cross_its_cuts(shared: Path) -> None:
    """A box that stays in place through every cut, the worst case, changes its id at each."""
    tracker, detector = Tracker(), CutDetector()
    ids = [
        update(tracker, [face(80)], index / 29.97, is_cut=detector.update(image))[0]
        for index, image in enumerate(decode(shared / "videos" / "stage_cuts.mp4"))
    ]
    assert ids == [0] * 20 + [1] * 62 + [2] * 129 + [3] * 64


def test_one_swaying_head_keeps_its_id_when_sampled(shared: Path) -> None:
    """`expressive_talk.mp4` sways up to 0.66 face sizes in 0.2 s, where IoU falls to 0.11."""
    model = get_model(
        str(shared / "models" / "scrfd_500m.onnx"), providers=["CPUExecutionProvider"]
    )
    model.prepare(ctx_id=-1, input_size=(256, 256), det_thresh=0.5)
    for every in (5, 10, 25):
        tracker, ids = Tracker(), []
        with av.open(shared / "videos" / "expressive_talk.mp4") as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index % every:
                    continue
                bgr = frame.to_ndarray(format="bgr24", width=256, height=256)
                found, _ = model.detect(bgr)
                ids += tracker.update(found[:, :4], found[:, 4], time_s=index / 25).tolist()
        assert len(ids) >= 183 // every
        assert set(ids) == {0}
