"""Is this image file whole, and what is it: JPEG, PNG and TIFF by their structure, without decoding pixels."""
