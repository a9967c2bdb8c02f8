"""How it is done, in one process per device: the model slots and everything that feeds them.

Nothing here knows a task by more than its name; `tasks` imports `worker`, never back.
"""
