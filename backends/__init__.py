"""The backends that ship with sparsefx, imported as `sparsefx.backends`."""

if __name__ != "sparsefx.backends":
    raise ImportError(
        f"this folder was imported as {__name__!r}: import it as 'sparsefx.backends', "
        "otherwise every class in it exists twice"
    )
