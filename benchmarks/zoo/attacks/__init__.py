"""The attacks, one file each. All of them inject by the published loop or say why not."""
