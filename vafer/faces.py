"""Frames → faces: boxes, scores and five landmarks, by the detector file that the user chose.

Two families of ONNX detectors are understood: SCRFD's, whose output layout insightface decodes, and
YuNet, which OpenCV runs. Both see the frame the same way: shrunk until its
longer side fits, never enlarged, and padded with black to multiples of 32, not to a square.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from vafer.download import in_one_line
from vafer.errors import ModelError
from vafer.mosaic import Mosaic
from vafer.onnx_file import card_in, check_weights, read_onnx
from vafer.options import STRIDE, DetectorOptions
from vafer.store import sha256
from vafer.tracks import box_distance

if TYPE_CHECKING:
    import torch

    from vafer.scrfd import SCRFD

BY_TORCH = ("cuda",)  # types of devices on which PyTorch runs SCRFD; ONNX Runtime does elsewhere
NMS_IOU = 0.4  # insightface's own default
# Small detectors as vafer trains them look again, from nearer, at what they are not sure of: scores
# up to so many logits below or above the threshold (docs/performance.md). Their card asks for it.
SECOND_LOOK = "second_look"
DOUBTED = 1.0
NOISE = 0.1  # below it there are hundreds in a frame, and none is looked at for a second time
MOST_AT_ONCE = 64  # faces that are looked at again in one picture
YUNET_CANDIDATES = 5000  # boxes that YuNet may hand to its non-maximum suppression
# Class, objectness, box and landmarks, and how many numbers of each a cell has.
YUNET_PARTS, YUNET_STRIDES = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}, (8, 16, 32)
YUNET_OUTPUTS = {f"{part}_{stride}" for part in YUNET_PARTS for stride in YUNET_STRIDES}
# SCRFD's layouts by their number of outputs, with landmarks or without: strides, anchors a cell.
SCRFD_LAYOUTS = {
    **dict.fromkeys((6, 9), ((8, 16, 32), 2)),
    **dict.fromkeys((10, 15), ((8, 16, 32, 64, 128), 1)),
}
TRIAL_SIDE = 128  # of the picture that a file is tried with

_log_level = threading.Lock()  # of OpenCV, which has one for all threads

# Padded BGR picture → boxes with scores (N, 5) and landmarks (N, 5, 2) or None, in its pixels.
Network = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True, slots=True)
class Faces:
    """The faces of one frame, by descending score, in pixels of that frame.

    boxes (N, 4) float32: x1, y1, x2, y2, clipped to the frame. scores (N,) float32. landmarks
    (N, 5, 2) float32: left eye, right eye, nose, left and right mouth corner as seen in the image;
    or None where the detector gives none.
    """

    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray | None

    def __len__(self) -> int:
        return len(self.boxes)


class Detector:
    """A face detector read from an ONNX file.

    device: where it is to run; the attribute says where it does: YuNet runs on the CPU, and so does
    what PyTorch cannot run where ONNX Runtime has no CUDA; `why_on_cpu` says it. n_threads: of ONNX
    Runtime, 0 for one each core. looks_twice: whether its card asks for that, see `DOUBTED`.
    in_batches: whether many frames at once are cheaper (`detect_many`). has_landmarks: whether its
    faces have the five landmarks. fixed_input: (width, height) where the network takes no other.
    is_yunet: its family, else SCRFD's. Several threads may use it at once. Raises ModelError when
    the file is damaged, or no face detector of a known family in one file.
    """

    def __init__(
        self,
        path: Path,
        options: DetectorOptions | None = None,
        *,
        device: str = "cpu",
        n_threads: int = 0,
    ) -> None:
        self.path = path
        self.options = options or DetectorOptions()
        model = read_onnx(path)
        card = card_in(model, path)
        check_weights(model, card, path)
        self.sha256 = sha256(path)
        self.looks_twice = card.get(SECOND_LOOK) is True
        self.is_yunet = {output.name for output in model.graph.output} == YUNET_OUTPUTS
        self._least = self.options.threshold  # that the network is asked for
        if self.looks_twice:
            doubted = float(_sigmoid(_logit(self.options.threshold) - DOUBTED))
            self._least = min(max(doubted, NOISE), self.options.threshold)
        self.why_on_cpu = ""
        if self.is_yunet:
            loaded = _load_yunet(path, self._least)
            self.why_on_cpu = "OpenCV runs YuNet there"
        elif device.partition(":")[0] in BY_TORCH:
            try:
                loaded = _load_torch(path, self._least, device)
            except ModelError as error:
                loaded = _load_insightface(path, self._least, device, n_threads)
                self.why_on_cpu = f"this onnxruntime has no CUDA provider, and {error}"
        else:
            loaded = _load_insightface(path, self._least, device, n_threads)
        self._network = loaded.network
        self._scrfd = loaded.scrfd
        self.in_batches = loaded.scrfd is not None
        self.fixed_input = loaded.fixed_input
        self.looks_twice &= self.fixed_input is None
        self.has_landmarks = loaded.has_landmarks
        self.device = loaded.device

    def detect(self, image: np.ndarray) -> Faces:
        """Find the faces of one frame: image uint8 (H, W, 3) RGB → Faces in its pixels."""
        fit = Fit.of(image.shape[:2], self.options.size, self.fixed_input)
        return self._in_frame(fit, *self._network(fit.canvas_of(image)), lambda: image)

    def detect_many(self, frames: "torch.Tensor") -> list[Faces]:
        """Find the faces of frames of one size at once, where `in_batches`.

        frames: uint8 (N, H, W, 3), RGB, on the device. The same as `detect` of each, within
        rounding.
        """
        assert self._scrfd is not None
        height, width = frames.shape[1:3]
        fit = Fit.of((height, width), self.options.size, self.fixed_input)
        found = self._scrfd.detect(
            frames,
            fit.inner[::-1],
            fit.canvas[::-1],
            threshold=self._least,
            iou=NMS_IOU,
        )
        return [
            self._in_frame(
                fit,
                boxes.numpy(),
                None if points is None else points.numpy(),
                lambda frame=frame: frame.cpu().numpy(),  # type: ignore[misc]
            )
            for frame, (boxes, points) in zip(frames, found, strict=True)
        ]

    def _in_frame(
        self,
        fit: "Fit",
        boxes_scores: np.ndarray,
        landmarks: np.ndarray | None,
        image: Callable[[], np.ndarray],
    ) -> Faces:
        """What was found in the canvas, in pixels of the frame; image: gives the frame, RGB."""
        boxes = boxes_scores[:, :4] / np.tile(fit.scale, 2)
        points = None if landmarks is None else landmarks / fit.scale
        scores = boxes_scores[:, 4].copy()
        if self.looks_twice:
            limit = _logit(self.options.threshold) + DOUBTED
            is_wanted = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= self.options.min_face
            doubted = np.flatnonzero((scores >= NOISE) & (_logit(scores) < limit) & is_wanted)
            first = Faces(boxes.copy(), scores.copy(), points)
            if len(doubted):
                frame, scale = image(), fit.scale.min()
                for start in range(0, len(doubted), MOST_AT_ONCE):
                    rows = doubted[start : start + MOST_AT_ONCE]
                    boxes[rows], scores[rows] = self._look_again(frame, rows, first, scale)
                # Two may turn out to be one.
                corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
                found = cv2.dnn.NMSBoxes(corners.tolist(), scores.tolist(), 0.0, NMS_IOU)
                alone = np.array(found, int)
                boxes, scores = boxes[alone], scores[alone]
                points = None if points is None else points[alone]
        return self._wanted(fit.shape, boxes, scores, points)

    def _look_again(
        self, image: np.ndarray, rows: np.ndarray, first: Faces, scale: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Look from nearer at some faces of a frame, uint8 (H, W, 3) RGB.

        first: what was seen at `scale` pixels per pixel of the frame, all in the frame's pixels;
        its landmarks are set in place. rows (N,): which are looked at. Returns their boxes (N, 4)
        and scores (N,). A score is the mean of both looks, of their logits, and 0 where nothing is
        seen any more but, at most, another of the faces. Box and landmarks are those of the look
        that had more pixels.
        """
        mosaic = Mosaic.near(first.boxes[rows])
        found, landmarks = self._network(mosaic.picture(image))
        pieces, seen, near = mosaic.found(found[:, :4])
        nearest = box_distance(near, first.boxes).argmin(axis=1) if len(near) else rows[:0]
        is_own = nearest == rows[pieces]
        pieces, seen, near = pieces[is_own], seen[is_own], near[is_own]
        boxes, scores = first.boxes[rows], np.zeros(len(rows), np.float32)
        both = (_logit(first.scores[rows[pieces]]) + _logit(found[seen, 4])) / 2
        scores[pieces] = _sigmoid(both)
        is_larger = mosaic.scales[pieces] > scale
        boxes[pieces[is_larger]] = near[is_larger]
        if first.landmarks is not None and landmarks is not None:
            points = mosaic.in_frame(landmarks[seen], pieces)
            first.landmarks[rows[pieces[is_larger]]] = points[is_larger]
        return boxes, scores

    def search(self, image: np.ndarray, around: np.ndarray, *, n_needed: int) -> Faces | None:
        """Find the faces of one frame around where they were in the one before.

        image uint8 (H, W, 3) RGB, around (N, 4) boxes in its pixels, N ≥ 1 → their faces, or None
        where one of the first `n_needed` is not found again, or where looking at the whole frame
        costs hardly more. Pieces of the frame lie side by side in one picture, see `vafer.mosaic`.
        This is one look, near as it is.
        """
        if self.fixed_input is not None:
            return None
        mosaic = Mosaic.of(image.shape[:2], around, self.options.size)
        if mosaic is None:
            return None
        boxes_scores, landmarks = self._network(mosaic.picture(image))
        is_seen = boxes_scores[:, 4] >= self.options.threshold
        boxes_scores = boxes_scores[is_seen]
        landmarks = None if landmarks is None else landmarks[is_seen]
        pieces, rows, boxes = mosaic.found(boxes_scores[:, :4])
        points = None if landmarks is None else mosaic.in_frame(landmarks[rows], pieces)
        faces = self._wanted(image.shape[:2], boxes, boxes_scores[rows, 4], points)
        n_found = int((pieces < n_needed).sum())
        is_whole = n_found == n_needed and len(faces) >= min(
            len(rows), self.options.max_faces or len(rows)
        )
        return faces if is_whole else None

    def _wanted(
        self,
        shape: tuple[int, int],
        boxes: np.ndarray,
        scores: np.ndarray,
        landmarks: np.ndarray | None,
    ) -> Faces:
        """Faces clipped to the frame, ordered, without those that the options leave out."""
        height, width = shape
        boxes = boxes.clip(0, np.tile([width, height], 2))
        sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)
        is_wanted = (sides > 0) & (sides >= self.options.min_face)
        if self._least < self.options.threshold:
            is_wanted &= scores >= self.options.threshold
        order = np.argsort(-scores, kind="stable")
        order = order[is_wanted[order]]
        order = order[: self.options.max_faces]
        return Faces(
            boxes=boxes[order].astype(np.float32),
            scores=scores[order].astype(np.float32),
            landmarks=None if landmarks is None else landmarks[order].astype(np.float32),
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """How a frame is shrunk and padded for the network.

    shape: (height, width) of the frame. inner, canvas: (width, height) that it is shrunk to, never
    enlarged, and of the picture that it lies in, at the top left, on black.
    """

    shape: tuple[int, int]
    inner: tuple[int, int]
    canvas: tuple[int, int]

    @classmethod
    def of(cls, shape: tuple[int, int], size: int, fixed_input: tuple[int, int] | None) -> "Fit":
        """size: most pixels of the longer side. fixed_input: (width, height), of some networks."""
        height, width = shape
        scale = min(1.0, size / max(height, width))
        if fixed_input is not None:
            scale = min(scale, fixed_input[0] / width, fixed_input[1] / height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas = fixed_input or (-(-inner[0] // STRIDE) * STRIDE, -(-inner[1] // STRIDE) * STRIDE)
        return cls((height, width), inner, canvas)

    @property
    def scale(self) -> np.ndarray:
        """In x and y, canvas pixels per frame pixel, at most 1."""
        return np.array([self.inner[0] / self.shape[1], self.inner[1] / self.shape[0]])

    def canvas_of(self, image: np.ndarray) -> np.ndarray:
        """The frame, uint8 (H, W, 3) RGB, as the network sees it, in BGR."""
        if self.inner != (self.shape[1], self.shape[0]):
            image = cv2.resize(image, self.inner, interpolation=cv2.INTER_LINEAR)
        canvas = np.zeros((self.canvas[1], self.canvas[0], 3), np.uint8)
        # Reversed by NumPy, channels took a tenth of the detector's own time.
        cv2.cvtColor(image, cv2.COLOR_RGB2BGR, dst=canvas[: self.inner[1], : self.inner[0]])
        return canvas


@dataclass(frozen=True, slots=True)
class _Loaded:
    network: Network
    has_landmarks: bool
    device: str
    fixed_input: tuple[int, int] | None = None  # width, height
    scrfd: "SCRFD | None" = None


def _logit(scores: np.ndarray | float) -> np.ndarray:
    scores = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(scores / (1 - scores)))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))


@contextmanager
def _only_errors_logged() -> Iterator[None]:
    """OpenCV 5 warns about a setting of YuNet that it makes by itself."""
    log = cv2.utils.logging
    with _log_level:
        level = log.getLogLevel()
        log.setLogLevel(log.LOG_LEVEL_ERROR)
        try:
            yield
        finally:
            log.setLogLevel(level)


def _load_yunet(path: Path, threshold: float) -> _Loaded:
    # From memory: OpenCV tells by the ending of a name what kind of file it is.
    content = np.fromfile(path, np.uint8)
    names = [f"{part}_{stride}" for part in YUNET_PARTS for stride in YUNET_STRIDES]
    own = threading.local()  # a network for each thread: the size of its input is set on it

    def network() -> Any:
        if not hasattr(own, "network"):
            with _only_errors_logged():
                own.network = cv2.FaceDetectorYN.create(
                    "onnx",
                    content,
                    np.empty(0, np.uint8),
                    (STRIDE, STRIDE),
                    threshold,
                    NMS_IOU,
                    YUNET_CANDIDATES,
                )
        return own.network

    try:
        with _only_errors_logged():
            trial = cv2.dnn.readNetFromONNX(content)
            trial.setInput(np.zeros((1, 3, TRIAL_SIDE, TRIAL_SIDE), np.float32))
            outputs = trial.forward(names)
        network()
    except cv2.error as error:
        raise ModelError(
            f"{path} has the outputs of YuNet, and OpenCV cannot run it: {in_one_line(error)}"
        ) from error
    sizes = [np.size(output) for output in outputs]
    n_cells = [(TRIAL_SIDE // stride) ** 2 for stride in YUNET_STRIDES]
    expected = [of_one * n for of_one in YUNET_PARTS.values() for n in n_cells]
    if sizes != expected:  # which OpenCV does not look at
        raise ModelError(
            f"{path} has the outputs of YuNet, and they hold {sizes} numbers of {TRIAL_SIDE} × "
            f"{TRIAL_SIDE} pixels: expected {expected}"
        )
    _check_finite(path, outputs)

    def run(canvas: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        network().setInputSize((canvas.shape[1], canvas.shape[0]))
        _, found = network().detect(canvas)
        if found is None:
            return np.empty((0, 5), np.float32), np.empty((0, 5, 2), np.float32)
        corner, side = found[:, 0:2], found[:, 2:4]
        boxes_scores = np.concatenate([corner, corner + side, found[:, 14:15]], axis=1)
        return boxes_scores, found[:, 4:14].reshape(-1, 5, 2)

    return _Loaded(run, has_landmarks=True, device="cpu")


def _load_torch(path: Path, threshold: float, device: str) -> _Loaded:
    """SCRFD on a GPU. Raises ModelError where PyTorch cannot run the file."""
    import torch

    from vafer.scrfd import SCRFD

    scrfd = SCRFD(path, device)

    def run(canvas: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        frame = torch.from_numpy(np.ascontiguousarray(canvas[:, :, ::-1])).to(device)
        shape = canvas.shape[:2]
        [(boxes, points)] = scrfd.detect(
            frame[None], shape, shape, threshold=threshold, iou=NMS_IOU
        )
        return boxes.numpy(), None if points is None else points.numpy()

    return _Loaded(run, scrfd.has_landmarks, device, scrfd=scrfd)


def _load_insightface(path: Path, threshold: float, device: str, n_threads: int) -> _Loaded:
    import onnxruntime
    from insightface.model_zoo.model_zoo import ModelRouter

    providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
    on_gpu = device != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    number = int(device.partition(":")[2] or 0)
    if on_gpu:
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number}))
    quiet = onnxruntime.SessionOptions()
    # Errors only: det_500m.onnx declares the output shapes of 640 pixels, and each run at another
    # size would print a warning for every one of them.
    quiet.log_severity_level = 3
    quiet.intra_op_num_threads = n_threads
    expected = "Expected one such as insightface's det_10g.onnx or det_500m.onnx"
    try:
        # Not get_model, which takes what does not end in .onnx for the name of a pack. One session
        # serves every frame size: insightface otherwise keeps one per size for ever.
        network = ModelRouter(str(path.resolve())).get_model(
            providers=providers, sess_options=quiet, static_shape_sessions=False
        )
    except Exception as error:  # whatever ONNX Runtime makes of a foreign graph
        raise ModelError(
            f"{path} cannot be loaded as a face detector: {in_one_line(error)}. {expected}"
        ) from error
    if getattr(network, "taskname", None) != "detection":
        found = getattr(network, "taskname", "a model of no known kind")
        raise ModelError(
            f"{path} is not a face detector: insightface takes it for {found}. {expected}"
        )
    width, height = network.static_input_size or (TRIAL_SIDE, TRIAL_SIDE)
    nothing = np.zeros((1, 3, height, width), np.float32)
    try:
        found = network.session.run(network.output_names, {network.input_name: nothing})
    except Exception as error:
        raise ModelError(
            f"{path} cannot be run as a face detector: {in_one_line(error)}. {expected}"
        ) from error
    sizes = [np.size(output) for output in found]
    if sizes != _scrfd_sizes(len(sizes), height, width):
        shapes = ", ".join(str(list(np.shape(output))) for output in found)
        raise ModelError(
            f"{path} does not give what a face detector of SCRFD's layout gives: of {width} × "
            f"{height} pixels, outputs of shapes {shapes}. {expected}"
        )
    _check_finite(path, found)
    # Without a size insightface would run two passes a frame; each call gives its own.
    network.prepare(ctx_id=number if on_gpu else -1, input_size=(640, 640), det_thresh=threshold)

    def run(canvas: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return network.detect(canvas, input_size=(canvas.shape[1], canvas.shape[0]))

    return _Loaded(
        run,
        has_landmarks=network.use_kps,
        device=device if on_gpu else "cpu",
        fixed_input=network.static_input_size,
    )


def _check_finite(path: Path, outputs: Iterable[np.ndarray]) -> None:
    if not all(np.isfinite(output).all() for output in outputs):
        raise ModelError(
            f"{path} gives NaN or infinite numbers for a black picture: it is damaged. Get it anew"
        )


def _scrfd_sizes(n_outputs: int, height: int, width: int) -> list[int]:
    """How many numbers each output of SCRFD's layout holds: scores, boxes, landmarks; none where
    there is no such layout."""
    strides, n_anchors = SCRFD_LAYOUTS.get(n_outputs, ((), 0))
    cells = [height // stride * (width // stride) * n_anchors for stride in strides]
    return [of_one * n for of_one in (1, 4, 10) for n in cells][:n_outputs]
