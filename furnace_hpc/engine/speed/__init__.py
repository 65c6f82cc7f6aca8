"""What keeps a GPU busy: compiled blocks, and steps in which the host does not wait."""
