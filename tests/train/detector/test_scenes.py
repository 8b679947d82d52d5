"""Scenes: faces lie where they are said to lie, and a scene can be made again."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from train.detector import backdrops, heads, scenes, warps
from train.detector.backdrops import background, page, written
from train.detector.heads import turned, with_glasses
from train.detector.material import Labelled, Material
from train.detector.scenes import LEAST_SIDE, Composer

EYES = np.array([[14, 18], [34, 18]], np.float32)


def portrait(seed: int = 0) -> Labelled:
    """A grey face whose left eye (as seen) is red, the right one blue, on black."""
    picture = np.zeros((48, 48, 3), np.uint8)
    cv2.ellipse(picture, (24, 24), (18, 22), 0, 0, 360, (128, 128, 128), -1)
    cv2.circle(picture, (14, 18), 3, (255, 0, 0), -1)
    cv2.circle(picture, (34, 18), 3, (0, 0, 255), -1)
    _, png = cv2.imencode(".png", picture[..., ::-1])
    points = np.array([[[14, 18], [34, 18], [24, 26], [17, 36], [31, 36]]], np.float32)
    box = np.array([[6, 2, 42, 46]], np.float32)
    return Labelled(png.tobytes(), box, points, np.ones(1, bool))


def frame(*, n_faces: int, sure: bool = True) -> Labelled:
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 255, (90, 160, 3)).astype(np.uint8)
    _, png = cv2.imencode(".png", picture)
    boxes = np.array([[20, 20, 60, 70], [100, 30, 130, 66]], np.float32)[:n_faces]
    points = boxes[:, None, :2] + np.array([[8, 10], [25, 10], [16, 20], [10, 28], [24, 28]])
    return Labelled(png.tobytes(), boxes, points.astype(np.float32), np.full(n_faces, sure))


def test_a_scene_is_a_function_of_its_generator() -> None:
    composer = Composer(Material([portrait()], [frame(n_faces=2)], [frame(n_faces=0)]))
    for seed in range(6):
        first, second = (composer.scene(np.random.default_rng(seed), 96, 128) for _ in range(2))
        assert first.picture.shape == (96, 128, 3)
        assert first.picture.dtype == np.uint8
        assert np.array_equal(first.picture, second.picture)
        assert np.array_equal(first.boxes, second.boxes)


def test_faces_are_inside_large_enough_and_apart() -> None:
    composer = Composer(
        Material([portrait()], [frame(n_faces=2), frame(n_faces=1, sure=False)], [])
    )
    n_faces = n_doubtful = 0
    for seed in range(60):
        scene = composer.scene(np.random.default_rng(seed), 128, 128)
        n_faces += len(scene.boxes)
        n_doubtful += len(scene.doubtful)
        assert scene.points.shape == (len(scene.boxes), 5, 2)
        if len(scene.boxes):
            assert scene.boxes.min() >= 0
            assert scene.boxes.max() <= 128
            assert (scene.boxes[:, 2:] - scene.boxes[:, :2]).min() >= LEAST_SIDE
        # A face's middle is in no other face's box, or one would hide the other.
        middles = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2
        for i, middle in enumerate(middles):
            for j, box in enumerate(scene.boxes):
                is_inside = (middle > box[:2] + 2).all() and (middle < box[2:] - 2).all()
                assert i == j or not is_inside
    assert n_faces > 60
    assert n_doubtful > 0


def test_landmarks_are_where_they_are_seen_in_the_picture_also_when_mirrored() -> None:
    composer = Composer(Material([portrait()], [], []))
    n_red = n_blue = n = 0
    for seed in range(150):
        scene = composer.scene(np.random.default_rng(seed), 128, 128)
        for box, points in zip(scene.boxes, scene.points, strict=True):
            if (box[2:] - box[:2]).min() < 24:
                continue
            left, right = points[:2]
            tops = points[:2, 1].mean()
            assert left[0] < right[0]
            assert points[3, 0] < points[4, 0]
            assert tops < points[3:, 1].mean()
            colours = []
            for x, y in (left, right):
                if not (2 <= x < 126 and 2 <= y < 126):
                    break
                piece = scene.picture[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2]
                mean = piece.reshape(-1, 3).astype(float).mean(axis=0)
                colours.append(mean[0] - mean[2])
            if len(colours) == 2 and abs(colours[0] - colours[1]) > 60:  # not tinted, not covered
                n += 1
                n_red += colours[0] > colours[1]
                n_blue += colours[0] < colours[1]
    assert n > 15
    assert min(n_red, n_blue) > 0.2 * n  # half of the faces are mirrored, and so are their eyes


def group() -> Labelled:
    """A photograph, bright but for three green faces with eyes as `portrait` has them, which are
    sure, and a blue one that is not."""
    picture = np.full((300, 400, 3), 220, np.uint8)
    middles = np.array([[60, 70], [200, 150], [330, 80], [120, 240]])
    for i, (x, y) in enumerate(middles.tolist()):
        cv2.circle(picture, (x, y), 22, (0, 128, 0) if i < 3 else (0, 0, 128), -1)
        cv2.circle(picture, (x - 8, y - 6), 6, (255, 0, 0), -1)
        cv2.circle(picture, (x + 8, y - 6), 6, (0, 0, 255), -1)
    _, png = cv2.imencode(".png", picture[..., ::-1])
    boxes = np.concatenate([middles - 22, middles + 22], axis=1)
    points = middles[:, None] + np.array([[-8, -6], [8, -6], [0, 4], [-6, 12], [6, 12]])
    sure = np.array([True, True, True, False])
    return Labelled(png.tobytes(), boxes.astype(np.float32), points.astype(np.float32), sure)


@pytest.mark.parametrize("shares", [(1, 0, 0), (0, 0, 1)])
def test_faces_of_photographs_are_where_they_are_seen(
    monkeypatch: pytest.MonkeyPatch, shares: tuple[float, ...]
) -> None:
    monkeypatch.setattr(scenes, "ALBUMS", 1.0)
    monkeypatch.setattr(scenes, "ACROSS_SHARES", shares)
    monkeypatch.setattr(scenes, "_photographed", lambda canvas, _: canvas.clip(0, 255))
    composer = Composer(Material([portrait()], [], [], [group()]))
    places, n_mirrored, n_doubtful, filled = set(), 0, 0, []
    for seed in range(60):
        scene = composer.scene(np.random.default_rng(seed), 192, 240)
        red, green, blue = (scene.picture[..., i].astype(int) for i in range(3))
        filled.append((scene.picture.max(axis=2) > 100).mean())
        for box, points in zip(scene.boxes, scene.points, strict=True):
            x1, y1, x2, y2 = box
            places.add((int((x1 + x2) * 3 / 480), int((y1 + y2) * 3 / 384)))
            if min(x2 - x1, y2 - y1) < 24 or not (points.min() > 4 and points[:, 1].max() < 188):
                continue
            nose = tuple(points[2].astype(int)[::-1])
            assert green[nose] > 100
            assert max(red[nose], blue[nose]) < 60
            reds = [int(red[int(y), int(x)] - blue[int(y), int(x)]) for x, y in points[:2]]
            assert abs(reds[0]) > 150
            assert abs(reds[1]) > 150
            assert points[0, 0] < points[1, 0]
            n_mirrored += reds[0] < 0
        for x1, y1, x2, y2 in scene.doubtful.astype(int):
            n_doubtful += (blue - green)[y1 : y2 + 1, x1 : x2 + 1].max() > 100
    assert len(places) == 9
    assert n_mirrored > 10
    assert n_doubtful > 10
    assert np.mean(filled) > 0.85  # also of those that are mirrored


@pytest.mark.parametrize("kind", ["frames", "people"])
def test_what_shows_many_faces_is_taken_more_often(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, share in {"MOSAICS": 0.0, "CROWDS": 0.0, "ALBUMS": 1.0, "FROM_FRAMES": 1.0}.items():
        monkeypatch.setattr(scenes, name, share)
    taken = []
    monkeypatch.setattr(scenes._Scene, "_lay", lambda _, picture, *args: taken.append(picture))
    pictures = [group(), frame(n_faces=1)]
    composer = Composer(replace(Material([portrait()], [], []), **{kind: pictures}))
    for seed in range(400):
        composer.scene(np.random.default_rng(seed), 64, 64)
    assert len(taken) >= 400
    assert 0.65 < np.mean([one is pictures[0] for one in taken]) < 0.85  # three sure faces of four


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (0.6, 0.0), (-0.6, 0.2), (0.0, -0.4)])
def test_landmarks_of_a_turned_head_are_where_they_are_seen(yaw: float, pitch: float) -> None:
    front = portrait()
    args = front.picture(), front.boxes[0], front.points[0]
    picture, box, points = turned(*args, yaw, pitch)
    assert picture.shape == (48, 48, 3)
    red = picture[..., 0].astype(int) - picture[..., 2]
    for sign, point in ((1, points[0]), (-1, points[1])):
        y, x = np.nonzero(sign * red > 60)
        if 4 < point[0] < 44:  # not at the silhouette
            assert abs(x.mean() - point[0]) < 1.5
            assert abs(y.mean() - point[1]) < 1.5
    shift = points[2] - args[2][2]  # of the nose, in the middle
    assert np.sign(shift.round(3)).tolist() == np.sign([yaw, pitch]).tolist()
    assert (points >= box[:2]).all()
    assert (points <= box[2:]).all()
    if yaw == pitch == 0:
        np.testing.assert_allclose(box, args[1], atol=1e-3)
    elif yaw:
        assert box[2] - box[0] < args[1][2] - args[1][0]  # part of it is turned away


@pytest.mark.parametrize("apart", [5.0, 12.0, 40.0])
@pytest.mark.parametrize("turn", [0.0, 0.8, -0.5])
def test_glasses_lie_around_the_eyes_and_turn_with_them(apart: float, turn: float) -> None:
    blank = np.full((120, 160, 3), 128, np.uint8)
    middle, along = np.array([90.0, 50.0]), np.array([np.cos(turn), np.sin(turn)])
    eyes = np.stack([middle - apart / 2 * along, middle + apart / 2 * along])
    y, x = np.mgrid[:120, :160]
    right = ((x - middle[0]) * along[0] + (y - middle[1]) * along[1]) / apart
    down = ((y - middle[1]) * along[0] - (x - middle[0]) * along[1]) / apart
    pixel = 1.5 / apart
    n_through_lenses = 0.0
    for seed in range(30):
        worn = with_glasses(blank, eyes, np.random.default_rng(seed))
        assert (blank == 128).all()
        is_rim = (np.abs(worn.astype(int) - 128) > 12).any(axis=2)
        assert not is_rim[(np.abs(down) > 0.5 + pixel) | (np.abs(right) > 1.4 + pixel)].any()
        low, high = (-0.22 - pixel, 0.18 + pixel)  # a bar through the heights where it may be
        for at in (0.0, -1.1, 1.1):  # bridge and temples
            bar = is_rim[(np.abs(right - at) < pixel / 2) & (down > low) & (down < high)]
            assert bar.any()
        for eye in (-0.5, 0.5):  # a rim on all four sides
            beside = np.abs(right - eye)
            assert is_rim[(np.abs(down) < pixel) & (beside > 0.2) & (beside < 0.5 + pixel)].any()
            for side in (-1, 1):
                assert is_rim[(beside < pixel) & (side * down > 0.1) & (side * down < 0.5)].any()
        through = worn[(np.abs(np.abs(right) - 0.5) < pixel / 2) & (np.abs(down) < pixel / 2)]
        n_through_lenses += (np.abs(through.astype(int) - 128) < 60).all(axis=1).mean()
    assert n_through_lenses > 20  # most lenses are clear


def test_glasses_on_a_turned_head_are_those_on_an_upright_one_turned() -> None:
    blank, middle = np.full((120, 120, 3), 128, np.uint8), np.array([60.0, 60.0])
    overlaps = []
    for seed in range(30):
        masks = []
        for turn in (0.0, 0.8):
            reach = 20 * np.array([np.cos(turn), np.sin(turn)])
            eyes = np.stack([middle - reach, middle + reach])
            worn = with_glasses(blank, eyes, np.random.default_rng(seed))
            back = cv2.getRotationMatrix2D((60, 60), float(np.degrees(turn)), 1)
            upright = cv2.warpAffine(worn, back, (120, 120), borderValue=(128, 128, 128))
            masks.append((np.abs(upright.astype(int) - 128) > 12).any(axis=2))
        overlaps.append((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
    assert np.mean(overlaps) > 0.85


def test_a_face_whose_eyes_are_one_point_gets_no_more_than_a_dot() -> None:
    blank = np.full((20, 20, 3), 128, np.uint8)
    for seed in range(10):
        worn = with_glasses(blank, np.full((5, 2), 9.0), np.random.default_rng(seed))
        changed = np.argwhere((worn != blank).any(axis=2))
        assert np.abs(changed - 9).max(initial=0) <= 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_glasses_are_put_on_the_share_of_faces_that_is_said(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on = []
    monkeypatch.setattr(heads, "GLASSES", share)
    monkeypatch.setattr(heads, "with_glasses", lambda picture, *_: put_on.append(1) or picture)
    composer = Composer(Material([portrait()], [], []))
    n_faces = sum(len(composer.scene(np.random.default_rng(i), 96, 96).boxes) for i in range(10))
    assert n_faces > 0
    assert len(put_on) >= share * n_faces
    assert share > 0 or not put_on


@pytest.mark.parametrize("shape", [(48, 48), (48, 400), (300, 60), (640, 480), (1, 1)])
@pytest.mark.parametrize("wanted", [(16, 16), (384, 640), (256, 100)])
def test_a_view_is_a_part_of_a_picture_that_is_not_stretched(
    shape: tuple[int, int], wanted: tuple[int, int]
) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    places = np.dstack([x, y, np.zeros_like(x)])
    for seed in range(20):
        view = warps.view(places, *wanted, np.random.default_rng(seed))
        assert view.shape == (*wanted, 3)
        if min(shape) < 2:
            continue
        step_x = np.ptp(view[0, :, 0]) / wanted[1]
        step_y = np.ptp(view[:, 0, 1]) / wanted[0]
        fits = min(shape[0] / wanted[0], shape[1] / wanted[1])
        assert step_x <= fits + 1e-3
        assert step_y <= fits + 1e-3
        seen = fits * min(wanted)  # pixels of the shorter side where all that fits is seen
        least = min(seen, max(48.0, seen / 4))
        assert max(step_x, step_y) * min(wanted) >= least - 3


@pytest.mark.parametrize("seed", range(5))
def test_a_background_is_a_picture(seed: int) -> None:
    made = background(np.random.default_rng(seed), 40, 70)
    assert made.shape == (40, 70, 3)
    assert made.min() >= 0
    assert made.max() <= 255


@pytest.mark.parametrize("shape", [(1, 1), (9, 300), (240, 320)])
@pytest.mark.parametrize("shade", [10, 245])
def test_letters_are_laid_on_a_copy_and_stand_out(shape: tuple[int, int], shade: int) -> None:
    sheet = np.full((*shape, 3), shade, np.uint8)
    shares, contrasts = [], []
    for seed in range(40):
        inked = written(sheet, np.random.default_rng(seed))
        assert (sheet == shade).all()
        assert inked.shape == sheet.shape
        apart = np.abs(inked.astype(int) - shade).max(axis=2)
        shares.append((apart > 20).mean())
        contrasts.append(apart.max())
    if shape == (240, 320):
        assert 0.01 < np.mean(shares) < 0.3  # letters, neither specks nor a block
        assert np.mean(np.array(contrasts) > 100) > 0.8


def test_pages_differ_and_have_letters() -> None:
    pages = [page(np.random.default_rng(seed), 60, 80) for seed in range(20)]
    assert all(sheet.shape == (60, 80, 3) and sheet.dtype == np.uint8 for sheet in pages)
    assert len({sheet.tobytes() for sheet in pages}) == 20
    assert np.mean([np.ptp(sheet) > 100 for sheet in pages]) > 0.7


@pytest.mark.parametrize("n_faces", [0, 1])
def test_nothing_is_written_on_a_frame_that_shows_a_face(
    n_faces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MOSAICS", "CROWDS", "CLOSE_UPS"):
        monkeypatch.setattr(scenes, name, 0.0)
    monkeypatch.setattr(scenes, "FROM_FRAMES", 1.0)
    monkeypatch.setattr(scenes, "CAPTIONS", 1.0)
    monkeypatch.setattr(scenes._Scene, "paste_face", lambda *_: None)
    monkeypatch.setattr(scenes._Scene, "paste_none", lambda *_: None)
    monkeypatch.setattr(scenes, "written", lambda picture, rng: np.zeros_like(picture))
    monkeypatch.setattr(scenes, "_photographed", lambda canvas, rng: canvas)
    composer = Composer(Material([portrait()], [frame(n_faces=n_faces)], []))
    for seed in range(30):
        scene = composer.scene(np.random.default_rng(seed), 96, 96)
        shows_a_face = len(scene.boxes) + len(scene.doubtful) > 0
        assert scene.picture.any() == shows_a_face
        assert shows_a_face == bool(n_faces)


def test_of_people_before_one_another_those_are_asked_for_who_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every face has a colour of its own: as much of it is seen as there is of its colour."""
    box = np.array([[4, 4, 44, 44]], np.float32)

    def oval(picture: np.ndarray, box: np.ndarray, *args: object) -> np.ndarray:
        """All of the box and nothing else."""
        y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
        inside = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
        return inside.astype(np.float32)

    monkeypatch.setattr(scenes, "MOSAICS", 0.0)
    monkeypatch.setattr(scenes, "CROWDS", 1.0)
    monkeypatch.setattr(heads, "HEADS_TURNED", 0.0)
    for module in (scenes, backdrops):  # white has the red and blue of a face here
        monkeypatch.setattr(module, "PAGES", 0.0)
    monkeypatch.setattr(scenes, "CAPTIONS", 0.0)
    monkeypatch.setattr(scenes, "tinted", lambda picture, rng: picture.astype(np.float32))
    monkeypatch.setattr(scenes, "skin_colour", lambda *_: np.zeros(3))
    monkeypatch.setattr(scenes, "oval", oval)
    monkeypatch.setattr(scenes, "_photographed", lambda canvas, rng: canvas.clip(0, 255))
    faces = []
    for k in range(40):  # green is the face's number; red and blue are those of no hair or cloth
        _, png = cv2.imencode(".png", np.full((48, 48, 3), (254, 6 * k, 254), np.uint8))
        points = np.full((1, 5, 2), 24, np.float32)
        faces.append(Labelled(png.tobytes(), box, points, np.ones(1, bool)))
    composer = Composer(Material(faces, [], [frame(n_faces=0)]))
    shares, n_doubtful, n_unnamed = list[float](), 0, 0
    for seed in range(80):
        in_turn = iter(faces)
        monkeypatch.setattr(composer, "portrait", lambda rng, in_turn=in_turn: next(in_turn))
        scene = composer.scene(np.random.default_rng(seed), 192, 192)
        red, green, blue = scene.picture.transpose(2, 0, 1)
        number = np.where(
            (np.abs(red - 254) < 0.9) & (np.abs(blue - 254) < 0.9), np.round(green / 6), -1
        ).astype(int)
        for x1, y1, x2, y2 in scene.boxes.astype(int):
            inside = number[y1 : y2 + 1, x1 : x2 + 1]
            most = np.bincount(inside[inside >= 0], minlength=1).max()
            shares.append(most / inside.size)
        n_doubtful += len(scene.doubtful)
        for x1, y1, x2, y2 in np.concatenate([scene.boxes, scene.doubtful]).astype(int):
            right, down = (x2 - x1) // 4 + 1, (y2 - y1) // 4 + 1  # some are turned a little
            number[max(0, y1 - down) : y2 + down, max(0, x1 - right) : x2 + right] = -1
        n_unnamed += (number >= 0).sum()
    assert len(shares) > 240
    assert np.median(shares) > 0.8
    assert np.mean(np.array(shares) < 0.45) < 0.02  # those of few pixels, since edges are soft
    assert n_doubtful > 20
    assert n_unnamed < 200


def test_what_is_kept_is_always_the_same_and_stays_so() -> None:
    file = frame(n_faces=0).file
    kept = [backdrops.kept_page(3), scenes._kept_picture(file), scenes._kept_grain(file)]
    assert [picture.shape for picture in kept[:2]] == [(*backdrops.PAGE, 3), (90, 160, 3)]
    np.testing.assert_allclose(kept[2].shape, (90 / 4, 160 / 4), atol=1)
    assert abs(float(kept[2].mean()) - 1) < 1e-3
    for of in (backdrops.kept_page, scenes._kept_picture, scenes._kept_grain):
        of.cache_clear()
    again = backdrops.kept_page(3), scenes._kept_picture(file), scenes._kept_grain(file)
    for picture, same in zip(kept, again, strict=True):
        np.testing.assert_array_equal(picture, same)
        with pytest.raises(ValueError, match="read-only"):
            picture[:] = 0


@pytest.mark.parametrize("has_face", [True, False])
def test_a_figure_lies_around_its_face_and_in_its_region(has_face: bool) -> None:
    made = scenes._Scene(
        Composer(Material([portrait()], [], [])), np.random.default_rng(0), 200, 300
    )
    half = np.array([10, 13])
    for place in np.random.default_rng(1).uniform(0, (300, 200), (200, 2)):
        box = np.concatenate([place - half, place + half])
        (y, x), layers = figure = made._figure(box, has_face=has_face)
        assert layers.shape == (4, y.stop - y.start, x.stop - x.start)
        assert 0 <= x.start <= x.stop <= 300
        assert 0 <= y.start <= y.stop <= 200
        clothes, neck, _, hair = (
            np.argwhere(layer) + np.array([y.start, x.start]) for layer in layers
        )
        middle = (box[1] + box[3]) / 2, (box[0] + box[2]) / 2
        if 60 <= middle[1] <= 240 and 60 <= middle[0] <= 140:  # all of it is inside
            assert abs(hair.mean(axis=0)[1] - middle[1]) < 2
            assert abs(clothes.mean(axis=0)[1] - middle[1]) < 2
            assert neck[:, 0].mean() > middle[0]
            assert clothes[:, 0].mean() > neck[:, 0].mean()
            assert clothes[:, 1].min() > x.start  # nothing is cut off beside or above
            assert clothes[:, 1].max() < x.stop - 1
            assert hair[:, 0].min() > y.start
        before = made.canvas.copy()
        made._dress(figure, np.array([200.0, 150, 130]))
        changed = (made.canvas != before).any(axis=2)[y, x]
        assert changed[layers.any(axis=0)].mean() > 0.9 or not layers.any()
        made.canvas[y, x] = before[y, x]
        np.testing.assert_array_equal(made.canvas, before)
