"""What a data set holds: manifests, lists, classes, discovery in folders, splits by subject."""
