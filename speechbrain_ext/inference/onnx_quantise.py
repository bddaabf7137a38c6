def quantise(path, folder):
    pass
