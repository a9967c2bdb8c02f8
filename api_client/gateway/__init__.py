"""HTTP for those who do not speak Celery. Needs `pip install -e '.[gateway]'` in the checkout."""
