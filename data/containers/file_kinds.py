"""What a file is by its first bytes, for messages about files that are no pictures."""

HEAD = 512
"""First bytes that are enough to tell."""
_CONVERT = "convert it to PNG or JPEG"
_UNPACK = "unpack it"
_FRAMES = "name it in a field `video`, or one frame of it, as in 'a.mp4#frame=0'"
_CONVERT_VIDEO = "convert it to MP4, or extract its frames as PNG or JPEG files and list those"
_COPY = "copy or download it again"
_STARTS = (
    (b"version https://git-lfs", "a git-lfs pointer", "run `git lfs pull` where it came from"),
    (b"%PDF", "a PDF", "name a page of it, as in 'a.pdf#page=1'"),
    (b"\x00\x05\x16\x07", "what macOS keeps beside a file", "the picture has no '._' in its name"),
    (b"\x1a\x45\xdf\xa3", "a video (WebM or Matroska)", _FRAMES),
    (b"\x00\x00\x01\xba", "a video (MPEG)", _CONVERT_VIDEO),
    (b"\x00\x00\x01\xb3", "a video (MPEG)", _CONVERT_VIDEO),
    (b"FLV\x01", "a video (FLV)", _CONVERT_VIDEO),
    (b"8BPS", "a Photoshop file", _CONVERT),
    (b"%!PS", "a PostScript file", "render it as a PNG file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file (EPS)", "render it as a PNG file"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile", "render it as a PNG file"),
    (b"\x01\x00\x00\x00\x58\x00\x00\x00", "a Windows metafile", "render it as a PNG file"),
    (b"\x00\x00\x01\x00", "an icon file (ICO)", _CONVERT),
    (b"\x00\x00\x02\x00", "a TGA picture", _CONVERT),
    (b"icns", "an icon file (ICNS)", _CONVERT),
    (b"DDS ", "a DDS texture", _CONVERT),
    (b"qoif", "a QOI picture", _CONVERT),
    (b"v/1\x01", "an OpenEXR picture", _CONVERT),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture", _CONVERT),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture", _CONVERT),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture", _CONVERT),
    (b"\xff\x0a", "a JPEG XL picture", _CONVERT),
    (b"PK\x03\x04", "a ZIP archive", _UNPACK),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"PAR1", "a parquet file", "name its cells: <file>#row=0&column=<name>"),
    (b"\x89HDF", "an HDF5 file", "write its pictures as files and name those"),
    (b"\x93NUMPY", "a NumPy array", "write it as a PNG file"),
    (b"\x89PNG", "a damaged PNG", _COPY),
    (b"\xff\xd8", "a damaged JPEG", _COPY),
    (b"GIF8", "a damaged GIF", _COPY),
    (b"BM", "a damaged BMP", _COPY),
    (b"II*\x00", "a TIFF that is damaged or of an unknown kind", _CONVERT),
    (b"MM\x00*", "a TIFF that is damaged or of an unknown kind", _CONVERT),
)
_RIFF = {b"WEBP": ("a damaged WebP", _COPY), b"AVI ": ("a video (AVI)", _FRAMES)}
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def kind_of_file(head: bytes) -> tuple[str, str]:
    """Return what a file is that cannot be read as a picture, and what to do about it.

    ``head``: its first `HEAD` bytes, or all where it is shorter.
    """
    if not head:
        return "an empty file", _COPY
    if not head.strip(b"\0"):
        return "a file of zeros", _COPY
    for start, name, advice in _STARTS:
        if head.startswith(start):
            return name, advice
    if head.startswith(b"RIFF") and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head[4:8] == b"ftyp":
        return _container(head[8:32])
    return _text(head)


def is_video(head: bytes) -> bool:
    """Return whether a file begins as a video does; ``head`` as for `kind_of_file`."""
    return kind_of_file(head)[0].startswith("a video")


def _container(brands: bytes) -> tuple[str, str]:
    """Tell the files that begin as MP4 does."""
    if b"avi" in brands:
        return "a damaged AVIF", _COPY
    if brands.startswith(_HEIF):
        return "a HEIC photo", _CONVERT
    return "a video (MP4 or MOV)", _FRAMES


def _text(head: bytes) -> tuple[str, str]:
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if begin.startswith((b"<?xml", b"<svg", b"<!--", b"<!doctype svg")) and b"<svg" in begin:
        return "an SVG drawing", "render it as a PNG file"
    if begin.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page", "the download failed; " + _COPY
    # A character may be cut at the end of the head.
    text = head.decode("utf-8", errors="ignore")
    if len(text.encode()) >= len(head) - 3 and all(c.isprintable() or c.isspace() for c in text):
        return f"a text that begins {text[:40]!r}", "check the path"
    return f"an unknown kind of file that begins with {head[:8].hex(' ')}", _CONVERT
