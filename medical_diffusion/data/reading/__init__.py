"""Reading files: formats, headers, volumes, flat images and DICOM series."""
