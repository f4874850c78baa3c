# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Which files the XML of a VRT, or of metadata beside a raster, leads to."""

from xml.parsers import expat

#: Elements and keys of metadata that hold the name of a file that GDAL would open.
NAMES = {
    *('sourcefilename', 'sourcedataset', 'x_dataset', 'y_dataset', 'dempath'),
    *('rpc_dem', 'overview_file', 'kernelfile', 'filename'),
}

#: Elements whose text is free: descriptions, coordinate reference systems, statistics.
FREE = {'metadata', 'description', 'srs', 'gcplist', 'histograms', 'categorynames'}

#: Languages of functions of pixels that GDAL itself has.
LANGUAGES = {'', 'c'}

#: A file that is named, and whether relative to the VRT (None: it is not).
type Reference = tuple[str, bool | None]


def read_references(path: str, of: str | None = None) -> list[Reference]:
    """List the files that an XML file leads to.

    Nothing is resolved, neither names nor entities. As GDAL has it, case is ignored and
    attributes stand for elements.

    Args:
        path: XML file.
        of: Raster beside which it lies (None: it is a VRT).

    Returns:
        The names and whether they are relative to the VRT.

    Raises:
        OSError: If it is no XML, defines entities, runs code, or leads to a server or
            into an archive.
    """
    with open(path, 'rb') as file:
        content = file.read()
    try:
        content.decode()
        encoding = None
    except UnicodeDecodeError:  # GDAL writes what it was given
        encoding = 'iso-8859-1'
    walk = _Walk(path, of)
    parser = expat.ParserCreate(encoding)
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = walk.entities
    parser.StartElementHandler = walk.start
    parser.EndElementHandler = walk.end
    parser.CharacterDataHandler = walk.text
    parser.CommentHandler = parser.ProcessingInstructionHandler = walk.aside
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        what = (
            'not a readable raster, its XML is damaged; replace, remove or exclude it'
            if of is None
            else f'the metadata beside {of!r} are damaged; write them anew, or remove '
            'them'
        )
        raise OSError(f'{path}: {what} ({error})') from error
    return walk.found


class _Walk:
    """What was met on a walk through the elements of an XML file."""

    def __init__(self, path: str, of: str | None) -> None:
        """Initialize a new _Walk instance."""
        self.path, self.of = path, of
        self.found: list[Reference] = []
        #: Name, attributes and text of the elements that are open.
        self.open: list[tuple[str, dict[str, str], list[str]]] = []

    def entities(self, *args: object) -> None:
        """Refuse what may define entities."""
        raise OSError(f'{self.path}: its XML has a DOCTYPE, which GDAL never writes')

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Enter an element."""
        lower = {key.lower(): value for key, value in attributes.items()}
        self.open.append((name.lower(), lower, []))
        for key, value in lower.items():
            if key in NAMES:
                self._name(value, None)
            elif key not in ('key', 'name') or value.lower() not in NAMES:
                self._value(key, value)

    def text(self, text: str) -> None:
        """Meet text."""
        if self.open:
            self.open[-1][2].append(text)

    def aside(self, *args: object) -> None:
        """Meet a comment, which GDAL and others take for the end of a name or not."""
        if self.open and self.open[-1][0] in NAMES:
            raise OSError(f'{self.path}: a comment stands within the name of a source')

    def end(self, name: str) -> None:
        """Leave an element."""
        element, attributes, texts = self.open.pop()
        value = ''.join(texts).strip()
        key = attributes.get('key', attributes.get('name', '')).lower()
        if element in NAMES or (element in ('mdi', 'option') and key in NAMES):
            relative = attributes.get('relativetovrt', '0').strip()
            if relative not in ('0', '1'):
                raise OSError(f'{self.path}: relativeToVRT={relative!r} must be 0 or 1')
            if value:
                self._name(value, True if relative == '1' else None)
        elif value:
            self._value(element, value)

    def _name(self, value: str, relative: bool | None) -> None:
        """Meet the name of a file."""
        if self.of is not None:  # metadata: overviews and the like
            self._refuse_elsewhere(value)
        self.found.append((value, relative))

    def _value(self, key: str, value: str) -> None:
        """Meet something that should name no file."""
        if key == 'pixelfunctionlanguage' and value.lower() not in LANGUAGES:
            raise OSError(
                f'{self.path}: has a function of pixels in {value!r:.40}, which is not '
                'run; write its result to a GeoTIFF'
            )
        if key in FREE or any(name in FREE for name, _, _ in self.open):
            return
        self._refuse_elsewhere(value)

    def _refuse_elsewhere(self, value: str) -> None:
        """Refuse what may lead to a server."""
        if '/vsi' in value or '://' in value:
            raise OSError(
                f'{self.path}: leads to {value!r:.200}, which is not followed'
                + ("; or drivers must name 'VRT'" if self.of is None else '; remove it')
            )
