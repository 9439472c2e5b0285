"""The demo: a made marketplace, drawn and photographed here, and its way through the whole workflow on real servers."""
