"""The asyncio (ASGI) shell of pooldrain: FastAPI on uvicorn."""
