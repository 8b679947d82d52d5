"""What can be pulled: the InsightFace packs, and the weights that CAF's authors published.

vafer may not ship either. Each file is pinned by its digest.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from vafer.download import RemoteFile

RELEASE_URL = "https://github.com/deepinsight/insightface/releases/download/v0.7"
CAF_REPOSITORY = "https://github.com/kdhht2334/Contrastive-Adversarial-Learning-FER"
# HEAD is the default branch, whatever it is called; the git blob ids pin the content.
CAF_URL = (
    "https://raw.githubusercontent.com/kdhht2334/Contrastive-Adversarial-Learning-FER/HEAD"
    "/demonstration/weights"
)


@dataclass(frozen=True, slots=True)
class Pack:
    """An InsightFace model pack, of which only the face detector is used."""

    name: str
    archive_bytes: int
    archive_sha256: str
    file_name: str  # of the detector; some archives nest it in a folder
    file_sha256: str

    origin = "an InsightFace pack"
    licence = "non-commercial research only"
    terms = "https://github.com/deepinsight/insightface#license"

    @property
    def n_bytes(self) -> int:
        return self.archive_bytes

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        url = f"{RELEASE_URL}/{self.name}.zip"
        return (RemoteFile(url, self.archive_sha256, self.archive_bytes),)

    def by_hand(self, target: Path) -> str:
        """What a user does instead where the network is out of reach."""
        return (
            f"download that file ({self.archive_bytes} bytes, SHA-256 {self.archive_sha256}) and "
            f"put the {self.file_name} inside it at {shlex.quote(str(target))}"
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """A model in two PyTorch files, encoder and regressor, as CAF's authors published theirs.

    n_bytes: of both, about: their lengths are not pinned, but the git blob ids cover them.
    """

    name: str
    n_bytes: int
    encoder: str  # file name
    encoder_blob: str
    regressor: str
    regressor_blob: str

    origin = "the weights that CAF's authors published"
    licence = "not stated by its authors; ask them"
    terms = CAF_REPOSITORY

    @property
    def file_name(self) -> str:
        return f"{self.name}.safetensors"

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        return (
            RemoteFile(f"{CAF_URL}/{self.encoder}", self.encoder_blob),
            RemoteFile(f"{CAF_URL}/{self.regressor}", self.regressor_blob),
        )

    def by_hand(self, target: Path) -> str:
        """What a user does instead where the network is out of reach."""
        return (
            f"download {self.encoder} (git blob id {self.encoder_blob}) and {self.regressor} (git "
            f"blob id {self.regressor_blob}) from demonstration/weights of {self.terms} and run: "
            f"vafer models convert {self.encoder} {self.regressor} --out {shlex.quote(str(target))}"
        )


_SCRFD_10G = "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91"
_SCRFD_2_5G = "041f73f47371333d1d17a6fee6c8ab4e6aecabefe398ff32cca4e2d5eaee0af9"
_SCRFD_500M = "5e4447f50245bbd7966bd6c0fa52938c61474a04ec7def48753668a9d8b4ea3a"

# Each digest stands in several public projects that pin this release independently of each other.
PACKS = {
    pack.name: pack
    for pack in (
        Pack(
            name="buffalo_l",
            archive_bytes=288_621_354,
            archive_sha256="80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f",
            file_name="det_10g.onnx",
            file_sha256=_SCRFD_10G,
        ),
        Pack(
            name="buffalo_m",
            archive_bytes=275_951_529,
            archive_sha256="d98264bd8f2dc75cbc2ddce2a14e636e02bb857b3051c234b737bf3b614edca9",
            file_name="det_2.5g.onnx",
            file_sha256=_SCRFD_2_5G,
        ),
        Pack(
            name="buffalo_s",
            archive_bytes=127_607_557,
            archive_sha256="d85a87f503f691807cd8bb97128bdf7a0660326cd9cd02657127fa978bab8b5e",
            file_name="det_500m.onnx",
            file_sha256=_SCRFD_500M,
        ),
        Pack(
            name="buffalo_sc",
            archive_bytes=14_969_382,
            archive_sha256="57d31b56b6ffa911c8a73cfc1707c73cab76efe7f13b675a05223bf42de47c72",
            file_name="det_500m.onnx",
            file_sha256=_SCRFD_500M,
        ),
        Pack(
            name="antelopev2",
            archive_bytes=360_662_982,
            archive_sha256="8e182f14fc6e80b3bfa375b33eb6cff7ee05d8ef7633e738d1c89021dcf0c5c5",
            file_name="scrfd_10g_bnkps.onnx",
            file_sha256=_SCRFD_10G,
        ),
    )
}

CAF_ALEXNET = Pair(
    name="caf-alexnet",
    n_bytes=12_240_488,  # 3,060,122 parameters of 4 bytes
    encoder="Encoder.t7",
    encoder_blob="0682ae01d35b2bd13c64d78a92e93032279004a7",
    regressor="FC_layer.t7",
    regressor_blob="6cfe4e169517fc176c2857a14490ba893c07843e",
)
PAIRS = {CAF_ALEXNET.name: CAF_ALEXNET}
