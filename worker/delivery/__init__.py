"""Messages taken, kept, stopped and answered, so that none is lost or met twice."""
