"""What a client sends as a picture: text in base64 becomes bytes, and bytes of another kind get
their name.

Nothing is decoded here. The kind is known by the first bytes, the number of pixels by the header.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from urllib.parse import unquote_to_bytes

from PIL import Image

from visage.detection.image_io import FORMATS
from visage.server.refusals import Refusal, seen

# Name for people -> Pillow's format. The rest of image_io.FORMATS is refused by name: no phone and
# no browser sends it, and every decoder is one more to attack.
ACCEPTED = {"JPEG": "JPEG", "PNG": "PNG", "WebP": "WEBP", "AVIF": "AVIF", "HEIC": "HEIF"}

# Begins each scan of a JPEG; it cannot occur inside one.
SCAN = b"\xff\xda"
# A progressive JPEG has about ten scans; thousands would keep the decoder busy for minutes.
MAX_SCANS = 64

SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"8BPS", "a Photoshop file"),
    (b"%PDF", "a PDF"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"RIFF", "a RIFF file (sound or video)"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
)
# Brands of the container ISO 14496-12, which HEIC, AVIF and MP4 share
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
MARKUP = re.compile(rb"\s*<(\?xml|!doctype|html|svg|[a-z]+[ >/])", re.IGNORECASE)

ADDRESS = re.compile(r"\s*(https?|file|ftp|blob|s3|gs|content):", re.IGNORECASE)
NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=]")
TO_STANDARD = str.maketrans("-_", "+/", " \t\r\n\f\v")


def from_base64(text: str, item: int, column: str, max_bytes: int) -> bytes:
    """The bytes that a text holds: plain base64, with line breaks (RFC 2045), in the URL-safe
    alphabet, without padding, or behind `data:...;base64,`. A Refusal for anything else."""
    where = {"item": item, "column": column}
    if match := ADDRESS.match(text):
        raise Refusal("address", seen=match[0].strip(), **where)

    body = _behind_data_prefix(text, where)
    # Room for line breaks, and 4 characters for 3 bytes
    if len(body) > 3 * (max_bytes // 2 + 1):
        raise Refusal("picture_bytes", limit=max_bytes, **where)

    plain = body.translate(TO_STANDARD).rstrip("=")
    if len(plain) > 4 * (max_bytes // 3 + 1):
        raise Refusal("picture_bytes", limit=max_bytes, **where)
    if wrong := NOT_BASE64.search(plain):
        place = body.find(wrong[0])
        raise Refusal("not_base64", seen=seen(wrong[0]), place=place, **where)
    if "=" in plain:
        raise Refusal("not_base64", seen="'='", place=body.find("="), **where)
    if len(plain) % 4 == 1:
        raise Refusal("cut_base64", count=len(plain), **where)

    return binascii.a2b_base64(plain + "=" * (-len(plain) % 4))


def _behind_data_prefix(text: str, where: dict[str, object]) -> str:
    """A text without the `data:image/jpeg;base64,` that a browser puts before it."""
    text = text.strip().removeprefix("\ufeff")
    if text[:5].lower() != "data:":
        return text
    prefix, comma, rest = text.partition(",")
    if not comma or not prefix.lower().rstrip().endswith(";base64"):
        raise Refusal("data_not_base64", **where)
    return unquote_to_bytes(rest).decode("latin-1") if "%" in rest else rest


def looks_like_base64(body: bytes) -> bool:
    """Whether a body of `/predict` is text with a picture in it: what a canvas gives as an
    address, or base64 of a JPEG, PNG, WebP or an ISO file."""
    head = body[:64].lstrip().lower()
    return head.startswith((b"data:", b"/9j/", b"ivborw0kgg", b"uklgr", b"aaaa"))


def kind_of(picture: bytes) -> str:
    """JPEG, PNG, WebP, AVIF or HEIC, else a phrase that says what the bytes are."""
    if not picture:
        return "empty"
    if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP":
        return "WebP"
    if picture[4:8] == b"ftyp":
        return _kind_of_iso_file(picture)
    for signature, name in SIGNATURES:
        if picture.startswith(signature):
            return name
    if MARKUP.match(picture[:256]):
        return "a text with markup (SVG, XML or HTML)"
    if _is_text(picture[:256]):
        return "text"
    return f"of no known kind (it begins with the bytes {picture[:4].hex(' ')})"


def _kind_of_iso_file(picture: bytes) -> str:
    size = min(int.from_bytes(picture[:4], "big"), 256)
    brands = [picture[8:12]]
    brands += [picture[start : start + 4] for start in range(16, size, 4)]
    if any(brand in AVIF_BRANDS for brand in brands):
        return "AVIF"
    if any(brand in HEIC_BRANDS for brand in brands):
        return "HEIC"
    return "a video (MP4 or QuickTime)"


def _is_text(head: bytes) -> bool:
    try:
        # The end may be inside a character
        text = head.decode("utf-8", "strict" if len(head) < 256 else "ignore")
    except UnicodeDecodeError:
        return False
    return all(sign.isprintable() or sign.isspace() for sign in text)


def accepted_kinds() -> list[str]:
    """Those of ACCEPTED that this installation reads."""
    Image.init()
    return [name for name, form in ACCEPTED.items() if form in FORMATS and form in Image.OPEN]


def check_kind(picture: bytes, item: int, column: str) -> None:
    """A Refusal for bytes that are no picture of an accepted kind."""
    kind = kind_of(picture)
    accepted = accepted_kinds()
    where = {"item": item, "column": column}
    if kind == "HEIC" and kind not in accepted:
        raise Refusal("heic", **where)
    if kind not in accepted:
        phrase = f"a {kind} picture" if kind in ACCEPTED else kind
        names = f"{', '.join(accepted[:-1])} or {accepted[-1]}"
        raise Refusal("no_picture", seen=phrase, accepted=names, **where)
    if kind == "JPEG" and picture.count(SCAN) > MAX_SCANS:
        raise Refusal("scans", limit=MAX_SCANS, **where)


def num_pixels(picture: bytes) -> int:
    """Width times height as the header says, nothing decoded. 0 where the header cannot be read:
    the decoder says later what is wrong."""
    formats = [ACCEPTED[name] for name in accepted_kinds()]
    try:
        with Image.open(io.BytesIO(picture), formats=[*formats, "MPO"]) as image:
            return int(image.width * image.height)
    except Exception:  # Pillow raises nearly any type for damaged bytes
        return 0


def quiet_decoders() -> None:
    """Leaves Pillow's warnings about damaged files out of the log; the refusals are counted."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def to_base64(picture: bytes, kind: str) -> str:
    """A picture as a data: address."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
