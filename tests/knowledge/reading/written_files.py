"""PDF and .docx files with given contents."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

TextLine = tuple[float, float, float, str]  # font size, left, bottom (points), text


def pdf(pages: Sequence[Sequence[TextLine]]) -> bytes:
    """A PDF with pages of lines in Helvetica."""
    n_pages = len(pages)
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(n_pages))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {n_pages} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, lines in enumerate(pages):
        shown = "\n".join(
            f"BT /F1 {size} Tf {left} {bottom} Td ({text}) Tj ET" for size, left, bottom, text in lines
        )
        objects += [
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>",
            f"<< /Length {len(shown.encode('cp1252'))} >>\nstream\n{shown}\nendstream",
        ]
    return pdf_of_objects(objects)


def pdf_of_objects(objects: Sequence[str]) -> bytes:
    """A PDF of objects. The first is the catalog and has number 1."""
    file = io.BytesIO()
    file.write(b"%PDF-1.7\n")
    offsets = []
    for number, content in enumerate(objects, 1):
        offsets.append(file.tell())
        file.write(f"{number} 0 obj\n{content}\nendobj\n".encode("cp1252"))
    table = file.tell()
    file.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode())
    file.writelines(f"{offset:010} 00000 n \n".encode() for offset in offsets)
    file.write(f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n".encode())
    return file.getvalue()


def docx_of_parts(document: bytes) -> bytes:
    """A .docx with a main part."""
    types = (
        b'<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        b'<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        b'<Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.'
        b'wordprocessingml.document.main+xml"/></Types>'
    )
    relations = (
        b'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        b'<Relationship Id="rId1" '
        b'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
        b'Target="word/document.xml"/></Relationships>'
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", types)
        archive.writestr("_rels/.rels", relations)
        archive.writestr("word/document.xml", document)
    return file.getvalue()


WORD = b'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def docx_body(body: bytes) -> bytes:
    """The main part of a .docx with ``body`` inside."""
    return b"<w:document " + WORD + b"><w:body>" + body + b"</w:body></w:document>"
