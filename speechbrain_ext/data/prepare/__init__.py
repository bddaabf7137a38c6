"""From folders of recordings to manifests: find, convert, choose, split."""
