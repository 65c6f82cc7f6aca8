"""Write packs: columns, workers, rejected files, and a pack that can be resumed."""
