"""The demo in colour: an artefact that comes with the package, `l2c run emoji`."""
