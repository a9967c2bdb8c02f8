"""HTTP for those who do not speak Celery. Needs `pip install 'clipyard[gateway]'`."""
