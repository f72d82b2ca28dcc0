"""The names of classes."""


def class_names(class_to_idx: dict[str, int]) -> list[str]:
    """Return the name of each class by its index; an index without a name is named by its number."""
    names = [""] * (max(class_to_idx.values()) + 1)
    for name, index in class_to_idx.items():
        names[index] += f"/{name}" if names[index] else str(name)  # a class map may put several folders into one
    return [name or str(index) for index, name in enumerate(names)]
